"""SASA in vLLM's first model runner, which the CPU build uses. It has no extension points for this: what is replaced here
is private to vLLM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched import scheduler
from vllm.v1.outputs import SamplerOutput
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker import cpu_worker

from sasa.serving.slots import Slots
from sasa.serving.vllm.admission import put
from sasa.serving.vllm.served import CLASS, Served, of_first_rank


class Drafts:
    """What the first runner asks for drafts (`speculative_config`, method `custom_class`)."""

    def __init__(self, config: Any) -> None:
        self.sampler: Sampler | None = None

    def load_model(self, model: Any) -> None:
        """There is none but the one that is served."""

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        assert self.sampler is not None
        return self.sampler.drafts


class Sampler:
    """In place of the first runner's rejection sampler: the same choice, on CPU tensors.

    What is chosen can be looked at here. So a winner that others were read after goes out at once, and is read again
    together with the first candidate behind it, from the logits that were kept of its first read; and a plain request
    is sampled without a draft, as ever.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        served = Served.of(runner.vllm_config)
        assert served is not None
        self.served = served
        self.vocabulary = runner.model_config.get_vocab_size()
        self.room: dict[str, int] = {}  # the slot of each request
        self.drafts: list[list[int]] = []
        self.counts = {"steps": 0, "reads": 0}
        self._slots: Slots | None = None
        self._behind = torch.empty(0, self.vocabulary)  # scores behind the best candidate so far

    def _assigned(self) -> np.ndarray:
        """The slots of the batch, one for each request that the runner knows, whether it is its turn or not."""
        runner, ids = self.runner, self.runner.input_batch.req_ids
        for gone in self.room.keys() - runner.requests.keys():
            del self.room[gone]
        if self._slots is None or len(runner.requests) > len(self._slots):
            room = 2 * max(len(runner.requests), runner.max_num_reqs)
            before, layers = self._slots, runner.get_model().sasa_layers
            self._slots = Slots(self.served.load(), layers, room, self.vocabulary, fixed=False)
            behind = torch.zeros(room, self.vocabulary)
            behind[: len(self._behind)] = self._behind
            self._behind = behind
            if before is not None:
                self._slots.take_over(before)
        free = iter(sorted(set(range(len(self._slots))) - set(self.room.values())))
        for name in ids:
            if name not in self.room:
                self.room[name] = next(free)
                put(
                    self._slots,
                    self.room[name],
                    self.served,
                    runner.requests[name].sampling_params,
                    name,
                )
        return np.array([self.room[name] for name in ids])

    def __call__(self, metadata: Any, draft_probs: Any, logits: Tensor, sampling: Any) -> Any:
        """One step; logits (n, V), behind the last token of each row, be it a draft."""
        runner, batch = self.runner, self.runner.input_batch
        count = batch.num_reqs
        out = torch.full(
            (count, 2), -1, dtype=torch.int32
        )  # of two columns, the runner leaves out what is -1
        self.drafts = [[] for _ in range(count)]
        if not count:  # the engine tries its memory
            return SamplerOutput(out, None)
        every = self._assigned()
        assert self._slots is not None
        model, slots = runner.get_model(), torch.from_numpy(every)
        scores = runner.sampler.apply_logits_processors(logits.float(), sampling, True)
        scores = scores / self._slots.settings()[0][slots, 3:4].float()
        values = torch.zeros(count)
        if self._slots.steered(every):
            values = of_first_rank(
                self._slots.values(slots, model.sasa_states[:, metadata.logits_indices])
            )
        lengths = torch.from_numpy(batch.num_tokens_no_spec[:count].astype(np.int64))
        drafted = np.array(metadata.num_draft_tokens) > 0
        skipped = runner.discard_request_mask.np[:count]
        self.counts["steps"] += 1
        self.counts["reads"] += int(drafted.sum())

        new = torch.from_numpy(~drafted & ~skipped)
        if drafted.any():
            rows = np.flatnonzero(drafted)
            at, mine = torch.from_numpy(rows), slots[drafted]
            choice = self._slots.choice
            ours = (metadata.draft_token_ids.long() == choice.pending[mine]) & (
                choice.place[mine] == lengths[at]
            )
            assert ours.all(), "the engine has read another token than it was given"
            over, best = self._slots.take(mine, values[at], every[rows])
            self._behind[mine[best]] = scores[at[best]]
            won, winner = at[over], choice.winner[mine[over]]
            out[won, 0] = winner.int()
            scores[won], values[won] = self._behind[mine[over]], choice.value[mine[over]]
            lengths[won] += 1
            new[won] = ~(winner[:, None] == self._slots.settings()[1][mine[over], 2:]).any(1)
        new &= lengths < runner.max_model_len
        rows = np.flatnonzero(new.numpy())
        if len(rows):
            at = torch.from_numpy(rows)
            self._slots.open(slots[at], scores[at], values[at], lengths[at], every[rows])
            # A plain request's token, or an end. Behind a draft nothing may come in the same step: an end is drafted.
            known = at[self._slots.choice.decided[slots[at]] & (out[at, 0] < 0)]
            out[known, 0] = self._slots.choice.pending[slots[known]].int()
            new[known] = False
        read_next = new | (torch.from_numpy(drafted) & (out[:, 0] < 0))
        for row in read_next.nonzero()[:, 0].tolist():
            self.drafts[row] = [int(self._slots.choice.pending[every[row]])]
        return SamplerOutput(out, None)


class Runner:
    """Mixed into the first model runner: logits of each row's last token alone, and our sampler."""

    def become_ours(self: Any) -> None:
        self.rejection_sampler = self.drafter.sampler = Sampler(self)

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        return True  # drafts go on up to the end of the longest text

    def _calc_spec_decode_metadata(
        self: Any, num_draft_tokens: np.ndarray, cu_num_scheduled_tokens: np.ndarray
    ) -> Any:
        last = torch.from_numpy(cu_num_scheduled_tokens.astype(np.int64) - 1)
        return SpecDecodeMetadata(
            draft_token_ids=self.input_ids.gpu[last][torch.from_numpy(num_draft_tokens > 0)],
            num_draft_tokens=num_draft_tokens.tolist(),
            cu_num_draft_tokens=torch.from_numpy(num_draft_tokens.cumsum()),
            cu_num_sampled_tokens=torch.arange(1, len(last) + 1),
            target_logits_indices=last,
            bonus_logits_indices=last,
            logits_indices=last,
        )


class CPUWorker(cpu_worker.CPUWorker):
    """The CPU's worker, whose runner is ours."""

    def init_device(self) -> None:
        super().init_device()
        kind = type(self.model_runner)
        self.model_runner.__class__ = type(CLASS + kind.__name__, (Runner, kind), {})
        self.model_runner.become_ours()


class Scheduler(scheduler.Scheduler):
    """Expects no token beyond the draft, and has a winner read again that others were read after."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_sampled_tokens_per_step = 0

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        rows = model_runner_output.req_id_to_index
        for name, drafts in scheduler_output.scheduled_spec_decode_tokens.items():
            request, written = (
                self.requests.get(name),
                model_runner_output.sampled_token_ids[rows[name]],
            )
            if request is not None and written and written[0] != drafts[-1]:
                request.num_computed_tokens -= 1
        return super().update_from_output(scheduler_output, model_runner_output)
