# SPDX-License-Identifier: Apache-2.0
"""Waits for the rollouts of a partition, as verl's replay buffer does, at a lower price and not for ever."""

from __future__ import annotations

import time

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from tempo_verl.errors import UserError
from tempo_verl.trainer.batch import listed

TOLD = 5  # prompts in the message
NOTHING = "no materializable trajectories"  # what verl says where every prompt has failed


class Arrivals(ReplayBuffer):
    """verl's buffer of a trainer in sync. Groups are neither filtered nor refilled: the checks refuse both.

    Args:
        poll_interval: seconds between two looks.
        timeout: seconds without any arrival after which the run ends; None: never (verl #7155).

    Attributes:
        errors: of prompts whose rollout failed, as far as it is known why; of the last call of :meth:`sample`.
    """

    def __init__(self, poll_interval: float, timeout: float | None):
        super().__init__(
            trainer_mode="sync",
            trainer_config={},
            max_off_policy_threshold=None,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            poll_interval=poll_interval,
        )
        self.timeout = timeout
        self.errors: dict[str, str] = {}
        self._asked = ""
        self._wanted: set[str] | None = None  # uids; None: any
        self._seen: tuple[int, ...] = ()
        self._since = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        """Wait until ``batch_size`` prompts have ended. Returns their rows, and verl's metrics.

        Raises:
            UserError: nothing has arrived for ``timeout`` seconds, or all that was asked for has failed.
        """
        self._asked, self._seen, self.errors = partition_id, (), {}
        try:
            return super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        except RuntimeError as error:
            if NOTHING not in str(error):
                raise
            raise UserError(
                f"no rollout of round {global_steps} succeeded{self.first_error()}; see the agent loop's log"
            ) from error

    def collect(self, global_steps: int, uids: set[str]):
        """:meth:`sample` of these prompts of the training partition, whatever else is under way."""
        self._wanted = uids
        try:
            return self.sample(global_steps=global_steps, partition_id="train", batch_size=len(uids))
        finally:
            self._wanted = None

    def wait(self, uids: set[str]) -> None:
        """Wait until these prompts of the training partition have ended, and leave them where they are.

        Raises:
            UserError: as :meth:`sample`.
        """
        self._asked, self._seen, looked = "train", (), time.time()
        while True:
            self._sync_metadata_from_transfer_queue()
            if uids <= self.finished_keys["train"] | self.failure_keys["train"]:
                return
            looked = self._wait_for_next_poll("train", looked)

    def first_error(self) -> str:
        """Why a rollout of the last collection failed, the first one, in brackets; empty if it is not known."""
        return f" (first: {next(iter(self.errors.values()))})" if self.errors else ""

    def _sampleable_terminal_keys(self, partition_id, eviction_reasons) -> set[str]:
        keys = super()._sampleable_terminal_keys(partition_id, eviction_reasons)
        return keys if self._wanted is None else keys & self._wanted

    def _sync_metadata_from_transfer_queue(self) -> None:
        """Read the tags of the partition that is asked for. verl reads all, the replay's ten times larger too."""
        asked = self._asked
        of_status = {
            "pending": self.pending_keys,
            "running": self.running_keys,
            "finished": self.finished_keys,
            "failure": self.failure_keys,
        }
        for known in (*of_status.values(), self.partitions, self.prompt_global_steps):
            known.clear()
        for key, tag in listed(asked).items():
            if tag.get("is_prompt", False):
                of_status[tag["status"]][asked].add(key)
                self.prompt_global_steps[asked][key] = tag["global_steps"]
                if "error" in tag and (self._wanted is None or key in self._wanted):
                    self.errors[key] = tag["error"]
            else:
                self.partitions[asked][key] = dict(tag)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        states = (self.partitions, self.running_keys, self.finished_keys, self.failure_keys)
        seen = tuple(len(state[partition_id]) for state in states)
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        elif self.timeout is not None and time.monotonic() - self._since > self.timeout:
            self._give_up(partition_id)
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def _give_up(self, partition_id: str) -> None:
        running, pending = (sorted(of[partition_id]) for of in (self.running_keys, self.pending_keys))
        first = ", ".join([*running, *pending][:TOLD])
        where = " (the last number is the question's row)" if partition_id == "train" else ""
        raise UserError(
            f"prompts that have not ended: {len(running) + len(pending)} ({len(running)} running, {len(pending)} not "
            f"begun); nothing has arrived for tempo.rollout_timeout={self.timeout:g} s; first: {first}{where}; see the "
            "agent-loop log, or raise the limit"
        )
