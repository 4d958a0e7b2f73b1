"""Fixtures: how a stream ends, and what proves that nothing was cut off."""

from __future__ import annotations

from dataclasses import replace

from berlin_chat import StreamInterrupted
from dialects.form import DONE, FIRST, PLAIN, REST, STOP, USAGE, Dialect, chunk, data, encoded

TAKES_IT = "takes a cut reply for a whole one"
ONLY_FIRST = "stops at [DONE]"

#: A running reply that was broken off when another question came, and one that had not begun. What cannot be told from
#: a cut names the setting that would take it for whole.
BROKEN_OFF = Dialect(
    "llama-cpp-python",
    "[DONE] without a finish_reason",
    "abetlen/llama-cpp-python#867; llama_cpp/server/app.py, interrupt_requests",
    data(chunk({"role": "assistant"}), FIRST, REST) + DONE,
    error=StreamInterrupted,
    says="end=",
    openai=TAKES_IT,
)
NEVER_BEGUN = replace(
    BROKEN_OFF, oddity="[DONE] before any text", body=data(chunk({"role": "assistant"})) + DONE, text="", says=""
)
AT_ONCE = replace(NEVER_BEGUN, oddity="[DONE] before any chunk", body=DONE)
LEFT_OPEN = Dialect(
    "vllm-mlx",
    "neither a finish_reason nor [DONE]",
    "waybarrios/vllm-mlx#167",
    data(FIRST, REST),
    error=StreamInterrupted,
    says="end=",
    openai=TAKES_IT,
)
NO_FINISH = Dialect(
    "SGLang 0.4.4",
    "finish_reason is always null",
    "sgl-project/sglang#4550",
    data(
        *(
            chunk(
                {"role": None, "content": text, "reasoning_content": None, "tool_calls": None},
                choice={"logprobs": None, "matched_stop": None},
                usage=None,
            )
            for text in ("Grü", "ße 🙂")
        )
    )
    + DONE,
    error=StreamInterrupted,
    says="end=",
    openai=TAKES_IT,
)
NEVER_A_REASON = Dialect(
    "Ollama 0.1",
    'finish_reason "" to the very end',
    "ollama/ollama#4357",
    data(chunk({"role": "assistant", "content": "Grü"}, ""), chunk({"role": "assistant", "content": "ße 🙂"}, ""))
    + DONE,
    error=StreamInterrupted,
    says="end=",
    openai=TAKES_IT,
)
#: The proxy ended its own body properly behind half of an event: no setting makes that a whole reply.
CUT = Dialect(
    "a gateway whose upstream died",
    "half of an event at the end of the body",
    "anomalyco/opencode#39968",
    data(FIRST) + data(REST)[:90],
    text="Grü",
    error=StreamInterrupted,
    openai=TAKES_IT,
)

CUTS = [
    BROKEN_OFF,
    replace(BROKEN_OFF, end="done", error=None, says="", finish_reason=None, openai=""),
    replace(BROKEN_OFF, end="close", error=None, says="", finish_reason=None, openai=""),
    *(replace(cut, end=end) for cut in (NEVER_BEGUN, AT_ONCE, CUT) for end in ("finish_reason", "done", "close")),
    LEFT_OPEN,
    replace(LEFT_OPEN, end="done"),
    replace(LEFT_OPEN, end="close", error=None, says="", finish_reason=None, openai=""),
    NO_FINISH,
    replace(NO_FINISH, end="done", error=None, says="", finish_reason=None, openai=""),
    NEVER_A_REASON,
    replace(NEVER_A_REASON, end="done", error=None, says="", finish_reason=None, openai=""),
]

ENDS = [
    Dialect(
        "vllm-mlx",
        "no [DONE] after the finish_reason",
        "waybarrios/vllm-mlx#101",
        data(FIRST, REST, STOP),
    ),
    Dialect(
        "KoboldCpp",
        "[DONE] without any line end",
        "LostRuins/koboldcpp, koboldcpp.py, send_oai_sse_event",
        data(FIRST, REST, STOP) + b"data: [DONE]",
    ),
    Dialect(
        "llama.cpp b10603",
        "[DONE] without its blank line",
        "darshi1337/apogee#139",
        data(chunk({"role": "assistant", "content": None}), FIRST, REST, STOP) + b"data: [DONE]\n",
    ),
    Dialect(
        "CLIProxyAPI's Grok",
        "the finishing chunk ends the body, without a newline",
        "awsl-project/maxx#807",
        data(FIRST, REST) + b"data: " + STOP,
        openai="drops the event that no blank line ends",
    ),
    Dialect(
        "CLIProxyAPI's Grok",
        "the only chunk ends the body, text and finish_reason in it",
        "awsl-project/maxx#807",
        b"data: " + chunk({"role": "assistant", "content": "Grüße 🙂"}, "stop") + b"\n",
        openai="drops the event that no blank line ends",
    ),
    Dialect(
        "an Ollama backend",
        "[DONE] with spaces around it",
        "mistralai/mistral-vibe#793",
        data(FIRST, REST, STOP) + b"data:  [DONE] \n\n",
        openai="looks for [DONE] at the start, and takes the rest for JSON",
    ),
    Dialect(
        "an Ollama backend",
        "[DONE] with spaces around it, and no finish_reason",
        "mistralai/mistral-vibe#793",
        data(FIRST, REST) + b"data:  [DONE] \n\n",
        end="done",
        finish_reason=None,
        openai="looks for [DONE] at the start, and takes the rest for JSON",
    ),
    Dialect(
        "guidellm's servers",
        "[DONE] without a space before it",
        "vllm-project/guidellm#1106",
        data(FIRST, REST) + b"data:[DONE]\n\n",
        end="done",
        finish_reason=None,
    ),
    Dialect(
        "a relay of Coze",
        "[DONE] in quotes",
        "coze.com/open/docs/developer_guides/chat_v3, event done",
        data(FIRST, REST, STOP) + b'event: done\ndata: "[DONE]"\n\n',
        openai='takes "[DONE]" for a chunk',
    ),
    Dialect(
        "a relay of Coze",
        "[DONE] in quotes, and no finish_reason",
        "coze.com/open/docs/developer_guides/chat_v3, event done",
        data(FIRST, REST) + b'event: done\ndata: "[DONE]"\n\n',
        end="done",
        finish_reason=None,
        openai='takes "[DONE]" for a chunk',
    ),
    Dialect(
        "Tencent TokenHub",
        "[DONE] on a bare line",
        "yuezhiai/jonex#33",
        data(FIRST, REST, chunk({}, "stop", usage=USAGE)) + b"[DONE]\n\n",
        usage=USAGE,
    ),
    Dialect(
        "an upstream of jonex",
        "usage after [DONE]",
        "yuezhiai/jonex#33",
        PLAIN + data(encoded({"choices": [], "usage": USAGE})),
        usage=USAGE,
    ),
    Dialect(
        "LiteLLM in front of Azure",
        "usage between the finish_reason and [DONE]",
        "agentjido/req_llm#781",
        data(FIRST, REST, STOP, chunk({}, usage=USAGE)) + DONE,
        usage=USAGE,
    ),
    Dialect(
        "Open WebUI",
        "a finish_reason long before the last text",
        "open-webui/open-webui#16377",
        data(chunk({"role": "assistant", "reasoning_content": "Hm"}, "stop"), FIRST, REST, STOP) + DONE,
        reasoning="Hm",
    ),
]

DIALECTS = [*CUTS, *ENDS]
