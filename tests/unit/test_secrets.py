# SPDX-License-Identifier: Apache-2.0
"""Keys stay out of what is written, printed and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tempo_verl.config.flat import flatten
from tempo_verl.config.preflight import check
from tempo_verl.config.secrets import check_secrets, is_secret, masked
from tempo_verl.errors import UserError
from tempo_verl.launch import resolve_config
from tempo_verl.run import Run

ENV = "ray_kwargs.ray_init.runtime_env.env_vars"
KEY = "0123456789abcdef"
SECRETS = (
    "WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MYTOKEN",
    "WANDB_APIKEY", "KEY", "api_key", "wandb_api_key", "hf_token", "password", "client_secret",
)  # fmt: skip
OTHERS = (
    "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "VERL_FILE_LOGGER_PATH", "prompt_key", "image_key", "reward_fn_key",
    "max_token_len_per_gpu", "tokenizer_path", "loss_agg_mode", "KEYBOARD", "response_token",
    "MAX_TOKEN_LEN", "SORT_KEY",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_secret_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", OTHERS)
def test_other_names(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("hardware", ["cpu", "fsdp", "megatron"])
def test_no_setting_of_verl_or_ours_is_taken_for_one(hardware: str) -> None:
    config = resolve_config([f"hardware={hardware}"])
    check_secrets(config)
    settings = OmegaConf.to_container(config)
    assert masked(settings) == settings
    assert len(flatten(settings)) > 300


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (f"+{ENV}.WANDB_API_KEY={KEY}", f"+{ENV}.WANDB_API_KEY=***"),
        (f"+{ENV}.WANDB_API_KEY='{KEY} x'", f"+{ENV}.WANDB_API_KEY=***"),
        (f"+{ENV}={{HF_TOKEN: {KEY}, A: b}}", f"+{ENV}={{HF_TOKEN: ***, A: b}}"),
        ("data.prompt_key=prompt", "data.prompt_key=prompt"),
        ("tempo.labeled.files='/a b/c.parquet'", "tempo.labeled.files='/a b/c.parquet'"),
        ("--verbose", "--verbose"),
    ],
)
def test_words_of_a_command(word: str, expected: str) -> None:
    assert masked(word) == expected


def test_nested_values() -> None:
    settings = {"a": [{"HF_TOKEN": KEY, "b": "HF_TOKEN=x"}], "api_key": None, "password": {"c": 1}}
    assert masked(settings) == {"a": [{"HF_TOKEN": "***", "b": "HF_TOKEN=x"}], "api_key": None, "password": "***"}


@pytest.mark.parametrize("given", [f"+{ENV}.WANDB_API_KEY={KEY}", f"+{ENV}.WANDB_API_KEY='${{oc.env:WANDB_API_KEY}}'"])
def test_a_secret_among_the_settings_is_refused(compose, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(UserError) as caught:
        check(compose([given]))
    message = str(caught.value)
    assert message.startswith(f"{ENV}.WANDB_API_KEY: verl prints its settings") and KEY not in message
    assert "export WANDB_API_KEY" in message and len(message.splitlines()) == 1


def test_a_key_without_a_plus_is_not_printed() -> None:
    with pytest.raises(UserError, match=rf"^{ENV}\.WANDB_API_KEY=\*\*\*: there is no such setting") as caught:
        resolve_config(["hardware=cpu", f"{ENV}.WANDB_API_KEY={KEY}"])
    assert KEY not in str(caught.value)


def test_a_secret_of_the_environment_is_not_in_the_run_folder(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = compose(["trainer.logger=[console,wandb]"])
    check_secrets(config)
    Run(tmp_path / "run").begin(config)
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert KEY not in written
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").tempo.method == "tempo"
    Run(tmp_path / "other").begin(compose([f"+{ENV}.WANDB_API_KEY={KEY}"]))  # where nothing was checked
    written = (tmp_path / "other" / "config.yaml").read_text()
    assert KEY not in written and "WANDB_API_KEY: '***'" in written
