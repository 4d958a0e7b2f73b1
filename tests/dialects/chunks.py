"""Fixtures: what chunks are made of."""

from __future__ import annotations

from dialects.form import (
    CALLS,
    DONE,
    FIRST,
    PLAIN,
    REST,
    STOP,
    TEXT,
    USAGE,
    WHOLE,
    Dialect,
    called,
    chunk,
    completion,
    data,
    encoded,
    escaped,
)

SAFE = {"hate": {"filtered": False, "severity": "safe"}}
#: Azure's chunks that carry no text name neither the reply nor the model.
NAMELESS = {"id": "", "object": "", "created": 0, "model": ""}

AZURE = [
    Dialect(
        "Azure OpenAI",
        "a first chunk of prompt_filter_results, with empty choices",
        "AbanteAI/archive-old-cli-mentat#429",
        data(
            encoded(
                {
                    "choices": [],
                    **NAMELESS,
                    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}],
                }
            ),
            chunk({"role": "assistant", "content": ""}, choice={"content_filter_results": {}, "logprobs": None}),
            chunk({"content": "Grü"}, choice={"content_filter_results": SAFE}),
            chunk({"content": "ße 🙂"}, choice={"content_filter_results": SAFE}),
            chunk({}, "stop", choice={"content_filter_results": {}}),
        )
        + DONE,
        completion(
            {"content": TEXT, "refusal": None, "annotations": []},
            choice={"content_filter_results": SAFE, "logprobs": None},
            prompt_filter_results=[{"prompt_index": 0, "content_filter_results": SAFE}],
        ),
    ),
    Dialect(
        "Azure OpenAI",
        "choices without a delta, of the asynchronous filter",
        "langchain-ai/langchain#18977; microsoft/autogen#6465",
        data(
            FIRST,
            REST,
            STOP,
            encoded(
                {
                    **NAMELESS,
                    "choices": [
                        {
                            "finish_reason": None,
                            "index": 0,
                            "content_filter_results": SAFE,
                            "content_filter_offsets": {"check_offset": 44, "start_offset": 44, "end_offset": 198},
                        }
                    ],
                    "usage": None,
                }
            ),
        )
        + DONE,
        openai="gives a choice whose delta is None",
    ),
    Dialect(
        "Azure OpenAI",
        "the filter ends it, in a choice without a delta",
        "openai/openai-python#1677; learn.microsoft.com/azure/ai-services/openai/concepts/content-filter",
        data(
            FIRST,
            encoded(
                {
                    "id": "c-1",
                    "object": "chat.completion.chunk",
                    "created": 1760000000,
                    "model": "m-1",
                    "choices": [{"index": 0, "finish_reason": "content_filter", "content_filter_results": SAFE}],
                    "usage": None,
                }
            ),
        )
        + DONE,
        completion({"content": "Grü"}, "content_filter", choice={"content_filter_results": SAFE}),
        text="Grü",
        finish_reason="content_filter",
        openai="gives a choice whose delta is None",
    ),
    Dialect(
        "a gateway in front of Azure OpenAI",
        "delta is null",
        "eneo-ai/eneo#126",
        data(FIRST, chunk(None, choice={"logprobs": None}, **NAMELESS), REST, chunk(None, "stop")) + DONE,
        openai="gives a choice whose delta is None",
    ),
]

NO_CHOICES = [
    Dialect(
        "MiniMax",
        "choices is null",
        "RooCodeInc/Roo-Code#9105",
        data(
            FIRST,
            encoded({"id": "c-1", "choices": None, "created": 1760000000, "model": "m-1", "usage": None}),
            REST,
            STOP,
            encoded({"id": "c-1", "choices": None, "model": "m-1", "usage": USAGE}),
        )
        + DONE,
        usage=USAGE,
    ),
    Dialect(
        "ATOM",
        "usage without choices",
        "ROCm/ATOM#1711",
        data(FIRST, REST, STOP, encoded({"usage": USAGE})) + DONE,
        completion({"content": TEXT}, usage=USAGE),
        usage=USAGE,
    ),
    Dialect(
        "Fireworks",
        "empty choices in the middle",
        "Portkey-AI/gateway#1629",
        data(
            FIRST,
            encoded({"id": "c-1", "object": "chat.completion.chunk", "choices": []}),
            REST,
            chunk({}, "stop", usage=USAGE),
        )
        + DONE,
        completion({"content": TEXT}, usage=USAGE),
        usage=USAGE,
    ),
    Dialect(
        "OpenAI",
        "padding against eavesdroppers, and usage in a chunk of its own",
        "platform.openai.com/docs/api-reference/chat-streaming",
        data(
            chunk(
                {"role": "assistant", "content": "", "refusal": None},
                service_tier="default",
                system_fingerprint="fp_1",
                usage=None,
                obfuscation="aB3",
            ),
            chunk({"content": "Grü"}, choice={"logprobs": None}, usage=None, obfuscation="xY"),
            chunk({"content": "ße 🙂"}, choice={"logprobs": None}, usage=None, obfuscation=""),
            chunk({}, "stop", usage=None, obfuscation="q"),
            encoded(
                {
                    "id": "c-1",
                    "object": "chat.completion.chunk",
                    "created": 1760000000,
                    "model": "m-1",
                    "choices": [],
                    "usage": USAGE,
                    "obfuscation": "",
                }
            ),
        )
        + DONE,
        completion({"content": TEXT, "refusal": None, "annotations": []}, choice={"logprobs": None}, usage=USAGE),
        usage=USAGE,
    ),
]

NULLS = [
    Dialect(
        "SGLang",
        "null for all that it does not say",
        "sgl-project/sglang#4550",
        data(
            *(
                chunk(
                    {"role": role, "content": text, "reasoning_content": None, "tool_calls": None},
                    finish,
                    choice={"logprobs": None, "matched_stop": None},
                    usage=None,
                )
                for role, text, finish in (("assistant", "Grü", None), (None, "ße 🙂", None), (None, None, "stop"))
            )
        )
        + DONE,
        completion(
            {"content": TEXT, "reasoning_content": None, "tool_calls": None},
            choice={"logprobs": None, "matched_stop": 2},
        ),
    ),
    Dialect(
        "MiniMax",
        'role "", reasoning_content "", and a count of 0 in every chunk',
        "MiniMax-AI/MiniMax-M2.5#2",
        data(
            *(
                chunk(
                    {"role": "", "content": text, "reasoning_content": ""},
                    finish,
                    usage={"total_tokens": total, "total_characters": 0},
                    input_sensitive=False,
                )
                for text, finish, total in (("Grü", None, 0), ("ße 🙂", None, 0), ("", "stop", 5))
            )
        )
        + DONE,
        usage={"total_tokens": 5, "total_characters": 0},
    ),
    Dialect(
        "Ollama 0.1",
        'finish_reason "" until there is one',
        "ollama/ollama#4357",
        data(
            chunk({"role": "assistant", "content": "Grü"}, "", system_fingerprint="fp_ollama"),
            chunk({"role": "assistant", "content": "ße 🙂"}, "", system_fingerprint="fp_ollama"),
            chunk({"role": "assistant", "content": ""}, "stop", system_fingerprint="fp_ollama"),
        )
        + DONE,
        completion({"content": TEXT}, system_fingerprint="fp_ollama"),
    ),
    Dialect(
        "llama.cpp",
        "a first chunk of null, and timings in the last",
        "ggml-org/llama.cpp#14268",
        data(
            chunk({"role": "assistant", "content": None}),
            chunk({"content": "Grü"}),
            chunk({"content": "ße 🙂"}),
            chunk({}, "stop", usage=USAGE, timings={"prompt_n": 3, "predicted_ms": 61.7}),
        )
        + DONE,
        completion({"content": TEXT}, usage=USAGE, timings={"prompt_n": 3, "predicted_ms": 61.7}),
        usage=USAGE,
    ),
    Dialect(
        "Together",
        "the text beside the delta too",
        "docs.together.ai/reference/chat-completions-1",
        data(
            *(
                chunk(
                    {"token_id": 7, "role": "assistant", "content": text, "tool_calls": None},
                    choice={"text": text, "logprobs": None, "seed": None},
                    usage=None,
                )
                for text in ("Grü", "ße 🙂")
            ),
            chunk(
                {"token_id": 2, "role": "assistant", "content": ""}, "eos", choice={"text": "", "seed": 9}, usage=USAGE
            ),
        )
        + DONE,
        completion({"content": TEXT, "tool_calls": []}, "eos", choice={"seed": 9}, prompt=[], usage=USAGE),
        finish_reason="eos",
        usage=USAGE,
    ),
]

TWICE = [
    Dialect(
        "Perplexity",
        "a growing message beside each delta, citations and usage in each chunk, CRLF",
        "perplexityai/api-discussion#193; perplexityai/api-discussion#209",
        data(
            *(
                chunk(
                    {"role": "assistant", "content": delta},
                    finish,
                    choice={"message": {"role": "assistant", "content": so_far}},
                    object="chat.completion",
                    citations=["https://a.example", "https://b.example"],
                    usage={"total_tokens": total},
                )
                for delta, so_far, finish, total in (
                    ("Grü", "Grü", None, 4),
                    ("ße 🙂", TEXT, None, 5),
                    ("", TEXT, "stop", 5),
                )
            ),
            after=b"\r\n\r\n",
        ),
        completion(
            {"content": TEXT},
            choice={"delta": {"role": "assistant", "content": ""}},
            citations=["https://a.example", "https://b.example"],
            usage={"total_tokens": 5},
        ),
        citations=["https://a.example", "https://b.example"],
        usage={"total_tokens": 5},
    ),
    Dialect(
        "an upstream of Hermes",
        "the whole message in place of the last delta",
        "abundantbeing/hermes-browser-extension#11",
        data(
            FIRST,
            REST,
            encoded(
                {
                    "id": "c-1",
                    "object": "chat.completion",
                    "model": "m-1",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
                    ],
                    "usage": USAGE,
                }
            ),
        )
        + DONE,
        usage=USAGE,
        openai="gives a choice whose delta is None",
    ),
]

OTHER_CHOICES = [
    Dialect(
        "Azure OpenAI",
        "a second choice, chunk by chunk",
        "BerriAI/litellm#3276",
        data(
            FIRST,
            chunk({"role": "assistant", "content": "Hal"}, choice={"index": 1}),
            REST,
            chunk({"content": "lo"}, choice={"index": 1}),
            chunk({"content": "?"}, "length", choice={"index": 1}),
            STOP,
        )
        + DONE,
        encoded(
            {
                "id": "c-1",
                "object": "chat.completion",
                "created": 1760000000,
                "model": "m-1",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
                    {"index": 1, "message": {"role": "assistant", "content": "Hallo?"}, "finish_reason": "length"},
                ],
            }
        ),
    ),
    Dialect(
        "an upstream of openai-agents",
        "two choices in one chunk, the second one first, with a tool call",
        "openai/openai-agents-python#3313",
        data(
            encoded(
                {
                    "id": "c-1",
                    "model": "m-1",
                    "choices": [
                        {
                            "index": 1,
                            "delta": {"content": "Hallo", "tool_calls": [called(0, *CALLS[0])]},
                            "finish_reason": "tool_calls",
                        },
                        {"index": 0, "delta": {"role": "assistant", "content": "Grü"}, "finish_reason": None},
                    ],
                }
            ),
            REST,
            STOP,
        )
        + DONE,
        encoded(
            {
                "id": "c-1",
                "object": "chat.completion",
                "created": 1760000000,
                "model": "m-1",
                "choices": [
                    {"index": 1, "message": {"role": "assistant", "content": "Hallo"}, "finish_reason": "length"},
                    {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
                ],
            }
        ),
    ),
]

HALVES = "leaves halves of surrogate pairs in the text"


def torn(*texts: str) -> bytes:
    """Chunks of these texts, escaped, and the chunk that finishes."""
    head = {"id": "c-1", "model": "m-1"}
    chunks = [{**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    return data(*map(escaped, chunks), STOP) + DONE


SURROGATES = [
    Dialect(
        "a gateway in JavaScript",
        "a surrogate pair torn between two deltas",
        "elie222/rakazo#416",
        torn("Grüße \ud83d", "\ude42"),
        openai=HALVES,
    ),
    Dialect(
        "a gateway in JavaScript",
        "a surrogate pair torn, an empty delta and a ping between",
        "elizaOS/eliza#30904",
        torn("Grüße \ud83d", "").removesuffix(data(STOP) + DONE) + b"data: {}\n\n" + torn("\ude42"),
        openai=HALVES,
    ),
    Dialect(
        "a gateway in JavaScript",
        "halves of surrogate pairs that stay alone",
        "elizaOS/eliza#30919",
        torn("\ude42Gr\ud83d", "üße \ud83d"),
        escaped(
            {
                "id": "c-1",
                "model": "m-1",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "\ude42Gr\ud83düße \ud83d"},
                        "finish_reason": "stop",
                    }
                ],
            }
        ),
        text="\ufffdGr\ufffdüße \ufffd",
        openai=HALVES,
        openai_whole=HALVES,
    ),
    Dialect(
        "gcli2api",
        "all that is not ASCII is escaped",
        "su-kaka/gcli2api#62",
        torn("Gr\u00fc", "\u00dfe \U0001f642"),
        escaped(
            {
                "id": "c-1",
                "model": "m-1",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
            }
        ),
    ),
]

SPELLINGS = [
    Dialect(
        "Workers AI",
        "text, U+2028, quotes and braces that look like the protocol",
        "rahilp/second-brain-cloudflare#353",
        data(chunk({"content": 'data: [DONE]\n\n{"error"'}), chunk({"content": ':"\u2028\\"}'}), STOP) + DONE,
        completion({"content": 'data: [DONE]\n\n{"error":"\u2028\\"}'}),
        text='data: [DONE]\n\n{"error":"\u2028\\"}',
    ),
    Dialect(
        "vLLM",
        "nothing but what OpenAI sends",
        "docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        PLAIN,
        WHOLE,
    ),
]

DIALECTS = [*AZURE, *NO_CHOICES, *NULLS, *TWICE, *OTHER_CHOICES, *SURROGATES, *SPELLINGS]
