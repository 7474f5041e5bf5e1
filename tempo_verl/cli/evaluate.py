# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl evaluate`` and ``tempo-verl answer``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tempo_verl.cli.paths import output_file, output_folder
from tempo_verl.errors import UserError


class EngineName(str, Enum):
    """What draws the responses."""

    auto = "auto"
    transformers = "transformers"
    vllm = "vllm"


class FinalValue(str, Enum):
    """Which of the critic's values a response has."""

    after_last_token = "after_last_token"
    before_last_token = "before_last_token"


def _sampling_options(
    *,
    critic: Annotated[str | None, typer.Option(help="Model with a trained value head, taken for P(right).")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples a question.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus limit; 1 is off.")] = 1.0,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt.")] = 2048,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 1,
    engine: Annotated[EngineName, typer.Option(help="auto: vLLM where it is installed.")] = EngineName.auto,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples drawn, then written, at a time; default: 64, 16 on a CPU, 1024 with vLLM."),
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Accelerators that share the model (vLLM).")] = 1,
    final_value: Annotated[
        FinalValue, typer.Option(help="The critic's value of a response, as tempo.final_value in training.")
    ] = FinalValue.after_last_token,
    chat_template_kwargs: Annotated[
        str, typer.Option(help="JSON, as data.apply_chat_template_kwargs in training.")
    ] = "{}",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    allow_verifier: Annotated[
        list[str] | None,
        typer.Option(help="module:function that the question files may name as their verifier; repeatable."),
    ] = None,
    read_unfinished: Annotated[
        bool, typer.Option("--read-unfinished", help="Look for an answer in a thinking that was cut off, too.")
    ] = False,
) -> dict[str, Any]:
    """The options that both commands have, as fields of ``Sampling``."""
    try:
        keywords = json.loads(chat_template_kwargs)
    except ValueError as error:
        raise UserError(f"--chat-template-kwargs={chat_template_kwargs}: not JSON ({error})") from error
    if not isinstance(keywords, dict):
        raise UserError(f'--chat-template-kwargs={chat_template_kwargs}: not an object, such as {{"name": true}}')
    return {
        "critic": critic,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_prompt_tokens": max_prompt_tokens,
        "max_tokens": max_tokens,
        "seed": seed,
        "engine": engine.value,
        "batch_size": batch_size,
        "tensor_parallel": tensor_parallel,
        "final_value": final_value.value,
        "chat_template_kwargs": keywords,
        "trust_remote_code": trust_remote_code,
        "read_unfinished": read_unfinished,
        "allowed": tuple(allow_verifier or ()),
    }


def _with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above; their result is its argument ``sampling``."""
    own, shared = (inspect.signature(function, eval_str=True).parameters for function in (command, _sampling_options))

    @wraps(command)
    def run(**given: Any) -> None:
        command(sampling=_sampling_options(**{name: given.pop(name) for name in shared}), **given)

    parameters = [parameter for name, parameter in own.items() if name != "sampling"] + list(shared.values())
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@_with_sampling_options
def evaluate(
    *,
    model: Annotated[str, typer.Argument(help="Hugging Face directory or name.")],
    data: Annotated[list[Path], typer.Option(help="Question file in verl's columns; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to write; samples that are there are not drawn again.")],
    k: Annotated[str | None, typer.Option(help="Of pass@k and maj@k; default: 1,8,16 as far as n goes, and n.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Folder of another evaluation: paired differences.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions, the first.")] = None,
    sampling: dict[str, Any],
) -> None:
    """Evaluate a model: accuracy, pass@k, votes, diversity and length, with intervals.

    tempo-verl evaluate MODEL --data heldout.parquet --n 16 --k 1,8,16 --out evaluations/model

    Run the same command again to go on after an interruption.
    """
    output_folder("--out", out)
    from tempo_verl.evaluation.engines import Sampling
    from tempo_verl.evaluation.evaluate import evaluate as run

    _quiet()
    run(Sampling(model, **sampling), data, out, Console(), ks=_numbers(k), limit=limit, other=compare)


@_with_sampling_options
def answer(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Hugging Face directory or name; or a finished run, to see its answers.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Questions in verl's columns; repeatable. Ground truths are not read.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("predictions.jsonl"),
    labeled: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled questions, or a folder of tempo-verl evaluate, to calibrate probabilities on."),
    ] = None,
    labeled_limit: Annotated[int, typer.Option(min=1, help="Only so many labelled questions, spread evenly.")] = 256,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of tempo-verl evaluate: vote on its samples, draw none.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions, the first.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of samples of the same questions, such as RUN/predictions_before.samples: compare."),
    ] = None,
    sampling: dict[str, Any],
) -> None:
    """Answer questions by a vote of n samples, weighted by a critic, with the probability that it is right.

    tempo-verl answer MODEL --data questions.parquet --critic CRITIC --labeled labeled.parquet --out predictions.jsonl

    tempo-verl answer --samples evaluations/model --out predictions.jsonl

    tempo-verl answer RUN shows what the answers of a finished run are worth beside more samples of the policy that it
    started with, and --against the same of any two policies.

    What it draws stays beside --out, in folders that end in .samples and .labeled: run the same command again to go on
    after an interruption, or remove them to begin anew.
    """
    from tempo_verl.evaluation.equal_cost import compare_folders, predictions_of_run, read_comparison, told
    from tempo_verl.evaluation.samples import sample_folders

    if model is not None and not data and samples is None and (found := predictions_of_run(Path(model))):
        predictions, compared = found
        for line in told(read_comparison(compared)):
            print(line)
        print(f"predictions: {predictions}")
        return
    output_file("--out", out)
    if samples is None:
        sample_folders(out)
    from tempo_verl.evaluation import answers
    from tempo_verl.evaluation.engines import Sampling

    _quiet()
    console = Console()
    if samples is not None:
        if model is not None or sampling["critic"] is not None:
            raise UserError("--samples: MODEL and --critic are those of the evaluation; leave them out")
        said = answers.answer_from_samples(
            samples, out, files=data or (), labeled=labeled or (), allowed=sampling["allowed"]
        )
    elif model is None or not data:
        raise UserError("name MODEL and --data, or the folder of an evaluation with --samples")
    else:
        drawn = Sampling(model, **sampling)
        said = answers.answer(
            drawn, data, out, console, labeled=labeled or (), limit=limit, labeled_limit=labeled_limit
        )
    if against is not None:
        said = [*said, *told(compare_folders(against, samples or sample_folders(out)[0]))]
    for line in said:
        console.print(Text(f"note: {line}"), soft_wrap=True)
    console.print(Text(f"predictions: {out}"), soft_wrap=True)


def _numbers(text: str | None) -> list[int] | None:
    """``1,8,16``"""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--k={text}: not whole numbers; give them as 1,8,16") from error


def _quiet() -> None:
    """Leave the screen to our own progress bar."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
