"""SASA in vLLM's second model runner, the default on GPUs, by its own extension points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched import async_scheduler, scheduler
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from sasa.serving.slots import Slots, there
from sasa.serving.vllm.admission import put
from sasa.serving.vllm.served import Served, of_first_rank


class State(DefaultModelState):
    """What the runner asks about the model: that a step gives no token but the draft, and who samples."""

    num_new_sampled_tokens_per_step = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sasa_requests: dict[int, str] = {}

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self.sasa_requests[req_index] = new_req_data.req_id

    def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
        return Sampler(self, sampler), None


class Sampler:
    """In place of the second runner's sampler, of which it keeps what works on logits."""

    def __init__(self, state: Any, base: Any) -> None:
        served = Served.of(state.vllm_config)
        assert served is not None
        self.served, self.requests, self.base, self.model = (
            served,
            state.sasa_requests,
            base,
            state.model,
        )
        self.slots = Slots(
            served.load(),
            self.model.sasa_layers,
            state.max_num_reqs,
            base.sampling_states.vocab_size,
            state.device,
        )
        self.known = np.zeros(state.max_num_reqs, bool)
        self.counts = {"steps": 0, "reads": 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def add_request(self, slot: int, params: Any) -> None:
        self.base.add_request(slot, params)
        put(self.slots, slot, self.served, params, self.requests[slot])
        self.known[slot] = True

    def apply_staged_writes(self) -> None:
        self.base.apply_staged_writes()
        self.slots.settings()

    def __call__(self, logits: Tensor, batch: Any) -> Any:
        """One step: takes in what was read, says what to read next, and gives out what has won.

        Args:
            logits: (n', V), behind the drafts of n' rows.
        """
        count, device = batch.num_reqs, self.slots.device
        sampled = torch.zeros(count, 1, dtype=torch.int32, device=device)
        accepted = torch.zeros(count, dtype=torch.int32, device=device)
        rejected = torch.zeros_like(accepted)
        out = SamplerOutput(sampled, None, None, accepted, rejected)
        every = batch.idx_mapping_np[:count]
        if not self.known[every].all():  # the engine tries its memory
            return out
        # What is known on the host says which rows are at which stage: nothing here waits for the device.
        drafted = np.diff(batch.cu_num_logits_np[: count + 1]) > 0
        read = (
            batch.num_computed_prefill_tokens_np + batch.num_scheduled_tokens
            >= batch.prefill_len_np
        )
        last = batch.query_start_loc_np[1 : count + 1].astype(np.int64) - 1
        lengths = self.base.req_states.total_len.gpu
        self.counts["steps"] += 1
        self.counts["reads"] += int(drafted.sum())
        if (new := read & ~drafted).any():  # prompts, and texts that were interrupted
            ends, rows = there(last[new], device), every[new]
            slots = there(rows.astype(np.int64), device)
            scores = self._processed(
                self.model.compute_logits(self.model.sasa_last[ends]), batch, new, ends, 0
            )
            values = of_first_rank(self.slots.values(slots, self.model.sasa_states[:, ends]))
            self.slots.open(slots, scores, values, lengths[slots].long(), rows)
        if drafted.any():
            ends, rows, at = (
                there(last[drafted], self.slots.device),
                every[drafted],
                there(np.flatnonzero(drafted), self.slots.device),
            )
            slots = there(rows.astype(np.int64), device)
            scores = self._processed(logits, batch, drafted, ends, 1)
            values = of_first_rank(self.slots.values(slots, self.model.sasa_states[:, ends]))
            token = self.slots.choice.pending[slots]
            over, _ = self.slots.take(slots, values, rows)
            # A winner that others were read after has lost its place in the cache: it is read once more.
            won = over & (self.slots.choice.winner[slots] == token)
            sampled[at, 0], accepted[at], rejected[at] = token.int(), won.int(), (~won).int()
            self.slots.open(slots, scores, values, lengths[slots].long() + 1, rows, won)
        slots = there(every.astype(np.int64), device)
        drafts = self.base.req_states.draft_tokens
        drafts[slots, 0] = self.slots.choice.pending[slots].to(drafts.dtype)
        return out

    def _processed(
        self, logits: Tensor, batch: Any, rows: np.ndarray, ends: Tensor, drafts: int
    ) -> Tensor:
        """Logits (n, V) as vLLM's own biases, penalties, bad words, temperature and min-p leave them, in float32.

        Args:
            rows: bool, which rows of the batch they belong to. ends: int64 (n,), where their last tokens stand in it.
            drafts: 1 where those are drafts, which count like what was written, else 0.
        """
        inside = there(np.flatnonzero(rows), self.slots.device)
        mapping = batch.idx_mapping[inside]
        position = torch.full((len(ends),), drafts, dtype=torch.int32, device=self.slots.device)
        found = self.base.apply_sampling_params(
            logits, mapping, mapping, batch.idx_mapping_np[: len(rows)][rows], batch.positions[ends],
            batch.input_ids[ends], position, batch.seq_lens_cpu_upper_bound.numpy()[: len(rows)][rows],
            skip_top_k_top_p=True,
        )  # fmt: skip
        return found[:, : self.slots.vocabulary].float()


class AsyncScheduler(async_scheduler.AsyncScheduler):
    """Expects no token beyond the draft."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_sampled_tokens_per_step = 0


class Scheduler(scheduler.Scheduler):
    """Expects no token beyond the draft, which waits in the worker: it has a place here, and no name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_sampled_tokens_per_step = 0

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)
        for name in scheduler_output.num_scheduled_tokens:
            if not self.requests[name].is_prefill_chunk:
                self.requests[name].spec_token_ids = [-1]
