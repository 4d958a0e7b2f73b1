"""llama.cpp's own server in a process of its own, with a tiny model of random numbers.

xllamacpp has the server in a wheel; nothing is compiled. As a script this file is that process:
``python tests/llama_cpp.py MODEL PORT``.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from peer import Peer

MODEL, KEY = "tiny", "sk-the-llamas-key"
#: All that the model can say. Some of it takes several bytes a character.
WORDS = ["sky", "blue", "light", "air", "sea", "wind", "cloud", "Himmel", "голубой", "небо", "空", "🙂"]
#: How many tokens of a conversation it looks at; what is older it forgets, so that it can talk without end.
CONTEXT = 1024


class LlamaCpp(Peer):
    """The server, ready to be started."""

    def __init__(self, folder: Path) -> None:
        super().__init__("llama.cpp's server", "/health", 60.0, folder)
        self._model = folder / f"{MODEL}.gguf"
        write_model(self._model)

    def command(self) -> list[str]:
        return [sys.executable, __file__, str(self._model), str(self.port)]


def write_model(path: Path) -> None:
    """Writes a Llama of one layer, about 100 kB: the same random numbers each time."""
    import gguf
    import numpy

    special = ["<unk>", "<s>", "</s>"]
    single = [f"<0x{byte:02X}>" for byte in range(256)]  # for what is asked, in any language
    tokens = [*special, *single, *(f"▁{word}" for word in WORDS)]
    kinds = gguf.TokenType
    width, inner, heads = 32, 64, 2

    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(1)
    file.add_context_length(CONTEXT)
    file.add_embedding_length(width)
    file.add_feed_forward_length(inner)
    file.add_head_count(heads)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_tokenizer_model("llama")
    file.add_token_list(tokens)
    file.add_token_scores([0.0] * len(tokens))
    file.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * len(single), *[kinds.NORMAL] * len(WORDS)]
    )
    file.add_unk_token_id(0)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")

    random = numpy.random.default_rng(1)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width)}
    shapes |= {f"blk.0.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner)}
    for name, shape in shapes.items():
        numbers = random.standard_normal(shape, numpy.float32)
        if name == "output":
            numbers[: -len(WORDS)] = 0  # the likeliest token is always a word
        file.add_tensor(f"{name}.weight", numbers)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        file.add_tensor(f"{name}.weight", numpy.ones(width, numpy.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def _serve(model: str, port: int) -> None:
    """Serves a model until the process is ended."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.model_alias = {MODEL}
    settings.api_keys = [KEY]
    settings.port = port
    settings.n_ctx, settings.n_parallel, settings.ctx_shift = CONTEXT, 1, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup = False
    settings.verbosity = 4  # tells of the tasks' ends
    server = xllamacpp.Server(settings)  # in a thread of its own, as long as this object lives
    threading.Event().wait()
    del server


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
