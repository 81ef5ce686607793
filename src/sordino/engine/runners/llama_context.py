"""llama.cpp behind checks: a .gguf file, a cache of cells, sequences in it. Everything that calls C is here.

A bad argument kills the process (GGML_ASSERT), so each one is checked before its call.

Shape key: N positions of a call, D model width, V vocabulary, W positions whose logits are wanted.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_batch import BatchBuffers, pointer
from sordino.engine.runners.llama_library import POOLING_NONE, LogCallback, library
from sordino.engine.runners.llama_room import CELLS_STEP, CellBudget, cell_bytes
from sordino.errors import ModelError, OutOfMemory

MAX_SEQUENCES = 256
# Positions of one call that reads hidden states: llama.cpp computes the logits of each too, and they take memory.
_READ_BATCH = 32

_log = logging.getLogger("sordino.llama")
# ggml_log_level of ggml.h; 1 is debugging, 5 goes on with the line before.
_INFO, _WARNING, _ERROR = 2, 3, 4
_last_messages: list[str] = []


def _log_message(level: int, text: bytes, user_data: object) -> None:
    """Log a message; none goes to the terminal. Its warnings are about what we do on purpose, such as a context longer than the
    model's, and an exception carries the messages of a call that failed."""
    line = text.decode("utf-8", "replace").strip()
    if level in (_INFO, _WARNING, _ERROR) and line:
        if level >= _WARNING:
            _last_messages[:] = [*_last_messages[-4:], line]
        _log.info(line)


# Not collected: C calls it as long as the process lives.
_log_callback = LogCallback(_log_message)


class LlamaContext:
    """A model file and its cells. For one thread at a time.

    split: whether each sequence has `cells` positions of its own, or all of them share `cells`.
    Raises ModelError for a file that llama.cpp cannot read, and OutOfMemory where its cells do not fit.
    """

    def __init__(
        self,
        path: Path,
        budget: CellBudget,
        *,
        batch: int,
        threads: int | None = None,
    ) -> None:
        self.sequences, self.batch = budget.sequences, max(batch, budget.sequences)
        if not 0 < self.sequences <= MAX_SEQUENCES or batch < 1 or not path.is_file():
            raise ValueError((self.sequences, batch, path))
        c = self._c = library()
        c.llama_log_set(_log_callback, None)
        c.llama_backend_init()
        _last_messages.clear()
        self._model: Any = c.llama_model_load_from_file(os.fsencode(path), c.llama_model_default_params())
        if not self._model:
            raise ModelError("llama.cpp cannot read this file", where=path.name, got="; ".join(_last_messages))
        self._finalizer: Any = finalize(self, c.llama_model_free, self._model)
        self.d_model = int(c.llama_model_n_embd_inp(self._model))
        self.vocab_size = int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model)))
        self.window = int(c.llama_model_n_swa(self._model))
        self.architecture = self._metadata("general.architecture")
        self._check_kind(path)
        plan = budget.plan(self._cell_bytes())
        self.split, self.cells = plan.split, plan.cells
        self._name, self._threads = path.name, threads
        self._contexts: list[Any] = []
        self._finalizer.detach()
        self._finalizer = finalize(self, _free, c, self._contexts, self._model)
        self._context = self._opened(self._context_params(plan.total), "the running rows")
        self._memory = c.llama_get_memory(self._context)
        self._buffers = BatchBuffers(self.batch)
        self._reader: Any = None

    def close(self) -> None:
        """Give the memory back. Nothing may be called afterwards."""
        self._finalizer()

    def run_ids(
        self, id_N: Sequence[int], position_N: Sequence[int], sequence_N: Sequence[int], wanted_N: Sequence[bool]
    ) -> NDArray[np.float32]:
        """Run tokens: the logits [W, V] of the wanted ones, in their order. Raises ModelError, OutOfMemory."""
        if id_N and not 0 <= min(id_N) <= max(id_N) < self.vocab_size:
            raise ValueError(f"ids of {self.vocab_size} tokens: {min(id_N)} to {max(id_N)}")
        return self._run(id_N, None, position_N, sequence_N, wanted_N)

    def run_embeds(
        self, embeds_ND: NDArray[np.float32], position_N: Sequence[int], sequence: int, *, wanted: bool = False
    ) -> NDArray[np.float32]:
        """Run vectors in place of tokens, in one sequence: the logits [1, V] of the last one, if wanted."""
        if embeds_ND.ndim != 2 or embeds_ND.shape[1] != self.d_model:
            raise ValueError(f"vectors {embeds_ND.shape} for a width of {self.d_model}")
        sequences, flags = [sequence] * len(embeds_ND), [False] * (len(embeds_ND) - 1) + [wanted]
        return self._run(None, np.ascontiguousarray(embeds_ND, np.float32), position_N, sequences, flags)

    def hidden(self, id_N: Sequence[int]) -> NDArray[np.float32]:
        """The hidden states [N, D], after the final norm, of a text alone: at most 2 x CELLS_STEP tokens. Rows are not touched.

        They come from a separate context, which the first call makes. Raises ModelError, OutOfMemory.
        """
        cells = 2 * CELLS_STEP
        if not (0 < len(id_N) <= cells and 0 <= min(id_N) <= max(id_N) < self.vocab_size):
            raise ValueError(f"{len(id_N)} ids")
        batch = min(_READ_BATCH, self.batch)
        if self._reader is None:
            params = self._c.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = cells, batch, batch, 1
            params.embeddings, params.pooling_type = True, POOLING_NONE
            self._reader = self._opened(params, "reading hidden states")
        self._c.llama_memory_clear(self._c.llama_get_memory(self._reader), False)
        found = np.empty((len(id_N), self.d_model), np.float32)
        for start in range(0, len(id_N), batch):
            ids = id_N[start : start + batch]
            count, places = len(ids), range(start, start + len(ids))
            self._decode(self._buffers.filled(ids, None, places, [0] * count, [True] * count), self._reader)
            states = self._c.llama_get_embeddings(self._reader)
            found[start : start + count] = np.ctypeslib.as_array(states, (count, self.d_model))
        return found

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the first positions of one sequence with another, without copying bytes. For sequences that share their cells."""
        self._check_sequences([source, target])
        if self.split:
            raise ValueError("sequences with cells of their own share none")
        self._c.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def cut(self, sequence: int, length: int) -> None:
        """Drop what a sequence holds from position `length` on."""
        self._check_sequences([sequence])
        if not self._c.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise ModelError("llama.cpp cannot shorten a sequence of this model", got=length)

    def saved_bytes(self, sequence: int) -> int:
        """The size of what `saved` returns."""
        self._check_sequences([sequence])
        return int(self._c.llama_state_seq_get_size(self._context, sequence))

    def saved(self, sequence: int) -> NDArray[np.uint8]:
        """What a sequence holds, as bytes for `restore`."""
        size = self.saved_bytes(sequence)
        state = np.empty(size, np.uint8)
        if (
            size == 0
            or self._c.llama_state_seq_get_data(self._context, pointer(state, ctypes.c_uint8), size, sequence) == 0
        ):
            raise ModelError("llama.cpp could not save a sequence", got=size)
        return state

    def restore(self, sequence: int, state: NDArray[np.uint8]) -> None:
        """Replace what a sequence holds by a state that `saved` returned."""
        self._check_sequences([sequence])
        if self._c.llama_state_seq_set_data(self._context, pointer(state, ctypes.c_uint8), state.size, sequence) == 0:
            raise OutOfMemory(
                "llama.cpp could not restore a sequence",
                got="; ".join(_last_messages),
                do="give more --kv-memory or fewer --rows",
            )

    def _run(
        self,
        id_N: Sequence[int] | None,
        embeds_ND: NDArray[np.float32] | None,
        position_N: Sequence[int],
        sequence_N: Sequence[int],
        wanted_N: Sequence[bool],
    ) -> NDArray[np.float32]:
        total = len(position_N)
        self._check_sequences(sequence_N)
        if not total == len(sequence_N) == len(wanted_N) or (
            total and not 0 <= min(position_N) <= max(position_N) < self.cells
        ):
            raise ValueError((total, len(sequence_N), len(wanted_N), self.cells))
        found = np.empty((sum(wanted_N), self.vocab_size), np.float32)
        at = 0
        for start in range(0, total, self.batch):
            part = slice(start, start + self.batch)
            batch = self._buffers.filled(
                None if id_N is None else id_N[part],
                None if embeds_ND is None else embeds_ND[part],
                position_N[part],
                sequence_N[part],
                wanted_N[part],
            )
            self._decode(batch, self._context)
            if count := sum(wanted_N[part]):
                # In the batch's order. Copied, since the next call overwrites them.
                logits = self._c.llama_get_logits(self._context)
                found[at : at + count] = np.ctypeslib.as_array(logits, (count, self.vocab_size))
                at += count
        return found

    def _decode(self, batch: Any, context: Any) -> None:
        code = self._c.llama_decode(context, batch)
        if code == 1:
            raise OutOfMemory("llama.cpp has no cells left", got=f"{self.cells} cells", do="give more --kv-memory")
        if code != 0:
            raise ModelError("llama.cpp could not run a step", got=f"{code}: {'; '.join(_last_messages)}")

    def _opened(self, params: Any, purpose: str) -> Any:
        """A context of the model, freed with the model."""
        if self._threads is not None:
            params.n_threads = params.n_threads_batch = self._threads
        context = self._c.llama_init_from_model(self._model, params)
        if not context:
            raise OutOfMemory(
                f"llama.cpp could not make room for {purpose}",
                where=self._name,
                got="; ".join(_last_messages),
                do="lower --kv-memory or --rows",
            )
        self._contexts.append(context)
        return context

    def _context_params(self, cells: int) -> Any:
        params = self._c.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = self.batch
        params.n_seq_max = self.sequences
        # One pool of cells: a long row takes what short ones leave, and rows share a prefix; but each row attends over all cells.
        params.kv_unified = not self.split
        # Rows are cut and copied, which needs the positions before a sliding window too.
        params.swa_full = True
        return params

    def _cell_bytes(self) -> int:
        """The size of one position."""
        layers, heads = int(self._c.llama_model_n_layer(self._model)), int(self._c.llama_model_n_head(self._model))
        shared = int(self._c.llama_model_n_head_kv(self._model))
        width = self._number("attention.key_length", int(self._c.llama_model_n_embd(self._model)) // max(1, heads))
        values = self._number("attention.value_length", width)
        return cell_bytes(layers, shared, width + values)

    def _number(self, name: str, default: int) -> int:
        value = self._metadata(f"{self.architecture}.{name}")
        return int(value) if value.isdecimal() else default

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = self._c.llama_model_meta_val_str(self._model, key.encode(), buffer, 256)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def _check_kind(self, path: Path) -> None:
        if self._c.llama_model_is_recurrent(self._model) or self._c.llama_model_is_hybrid(self._model):
            raise ModelError("models with recurrent layers are not served", where=path.name)
        if int(self._c.llama_model_n_embd_out(self._model)) != self.d_model:
            raise ModelError("models whose input and output vectors differ in width are not served", where=path.name)
        if self._c.llama_model_has_encoder(self._model) or not self._c.llama_model_has_decoder(self._model):
            raise ModelError("models with an encoder are not served", where=path.name)

    def _check_sequences(self, sequences: Sequence[int]) -> None:
        if sequences and not 0 <= min(sequences) <= max(sequences) < self.sequences:
            raise ValueError(f"sequences {min(sequences)} to {max(sequences)} of {self.sequences}")


def _free(c: Any, contexts: Sequence[Any], model: Any) -> None:
    for context in contexts:
        c.llama_free(context)
    c.llama_model_free(model)
