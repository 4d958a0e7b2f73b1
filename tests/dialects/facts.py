"""Fixtures: what stands beside the text: counts, refusals, probabilities, sources, images and sound."""

from __future__ import annotations

from dialects.form import DONE, FIRST, REST, STOP, TEXT, USAGE, Dialect, chunk, completion, data, encoded


def probable(token: str) -> dict[str, object]:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


def cited(number: int) -> dict[str, object]:
    site = {"url": f"https://{number}.example", "title": "A", "start_index": 0, "end_index": 3}
    return {"type": "url_citation", "url_citation": site}


def counted(completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": completion_tokens, "total_tokens": 3 + completion_tokens}


COUNTS = [
    Dialect(
        "vLLM",
        "usage in every chunk, continuous_usage_stats",
        "vllm-project/vllm#7262",
        data(
            chunk({"role": "assistant", "content": ""}, usage=counted(0)),
            chunk({"content": "Grü"}, usage=counted(1)),
            chunk({"content": "ße 🙂"}, "stop", usage=counted(2)),
            encoded({"id": "c-1", "model": "m-1", "choices": [], "usage": counted(2)}),
        )
        + DONE,
        completion({"content": TEXT}, usage=USAGE),
        usage=USAGE,
    ),
    Dialect(
        "vLLM",
        "usage in every chunk but the last",
        "vllm-project/vllm#6652",
        data(
            chunk({"role": "assistant", "content": "Grü"}, usage=counted(1)),
            chunk({"content": "ße 🙂"}, usage=counted(2)),
            chunk({}, "stop", usage=None),
        )
        + DONE,
        usage=USAGE,
    ),
    Dialect(
        "Groq",
        "usage in x_groq",
        "Portkey-AI/gateway, src/providers/groq/chatComplete.ts; console.groq.com/docs/api-reference",
        data(
            chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_1"}),
            FIRST,
            REST,
            chunk({}, "stop", x_groq={"id": "req_1", "usage": {**USAGE, "queue_time": 0.01}}),
        )
        + DONE,
        completion({"content": TEXT}, usage={**USAGE, "queue_time": 0.01}, x_groq={"id": "req_1"}),
        usage={**USAGE, "queue_time": 0.01},
    ),
    Dialect(
        "Moonshot",
        "usage in the choice",
        "earendil-works/pi#2017",
        data(
            chunk({"role": "assistant", "content": ""}),
            FIRST,
            REST,
            chunk({}, "stop", choice={"usage": USAGE}),
        )
        + DONE,
        completion({"content": TEXT}, usage=USAGE),
        usage=USAGE,
    ),
    Dialect(
        "xAI",
        "usage and the role in every chunk, no finish_reason until there is one",
        "M-Lai-ai/LLM-Provider-reference, Grok/streaming.md",
        data(
            *(
                encoded(
                    {
                        "id": "c-1",
                        "object": "chat.completion.chunk",
                        "model": "m-1",
                        "choices": [{"index": 0, "delta": {"content": text, "role": "assistant"}}],
                        "usage": counted(number),
                    }
                )
                for number, text in ((1, "Grü"), (2, "ße 🙂"))
            ),
            chunk({"content": "", "role": "assistant"}, "stop", usage=USAGE),
        )
        + DONE,
        completion({"content": TEXT, "refusal": None}, usage=USAGE),
        usage=USAGE,
    ),
    Dialect(
        "LiteLLM in front of xAI",
        "an empty chunk after the one with usage",
        "BerriAI/litellm#17136",
        data(
            FIRST,
            REST,
            STOP,
            encoded({"id": "c-1", "model": "m-1", "choices": [], "usage": USAGE}),
            encoded({"id": "c-1", "model": "m-1", "choices": []}),
        )
        + DONE,
        usage=USAGE,
    ),
]

REFUSED = [
    Dialect(
        "OpenAI",
        "a refusal",
        "platform.openai.com/docs/guides/structured-outputs",
        data(
            chunk({"role": "assistant", "content": "", "refusal": None}),
            chunk({"refusal": "Das "}),
            chunk({"refusal": "nicht."}),
            STOP,
        )
        + DONE,
        completion({"content": None, "refusal": "Das nicht."}),
        text="",
        refusal="Das nicht.",
    ),
]

PROBABLE = [
    Dialect(
        "OpenAI",
        "logprobs",
        "platform.openai.com/docs/api-reference/chat/object",
        data(
            chunk({"role": "assistant", "content": "", "refusal": None}, choice={"logprobs": None}),
            chunk({"content": "Gr"}, choice={"logprobs": {"content": [probable("Gr")], "refusal": None}}),
            chunk({"content": "ün"}, choice={"logprobs": {"content": [probable("ü"), probable("n")], "refusal": None}}),
            chunk({}, "stop", choice={"logprobs": None}),
        )
        + DONE,
        completion(
            {"content": "Grün"},
            choice={"logprobs": {"content": [probable("Gr"), probable("ü"), probable("n")], "refusal": None}},
        ),
        text="Grün",
        logprobs={"content": [probable("Gr"), probable("ü"), probable("n")], "refusal": None},
    ),
    Dialect(
        "OpenAI",
        "logprobs of a refusal",
        "platform.openai.com/docs/api-reference/chat/object",
        data(
            chunk({"refusal": "Das "}, choice={"logprobs": {"content": None, "refusal": [probable("Das ")]}}),
            chunk({"refusal": "nicht."}, choice={"logprobs": {"content": None, "refusal": [probable("nicht.")]}}),
            STOP,
        )
        + DONE,
        completion(
            {"content": None, "refusal": "Das nicht."},
            choice={"logprobs": {"content": None, "refusal": [probable("Das "), probable("nicht.")]}},
        ),
        text="",
        refusal="Das nicht.",
        logprobs={"content": None, "refusal": [probable("Das "), probable("nicht.")]},
    ),
]

SOURCES = [
    Dialect(
        "OpenAI",
        "annotations of a search, in the last delta",
        "platform.openai.com/docs/guides/tools-web-search",
        data(FIRST, REST, chunk({"annotations": [cited(1), cited(2)]}), STOP) + DONE,
        completion({"content": TEXT, "refusal": None, "annotations": [cited(1), cited(2)]}),
        annotations=[cited(1), cited(2)],
    ),
    Dialect(
        "OpenRouter",
        "annotations one by one",
        "openrouter.ai/docs/features/web-search",
        data(
            FIRST,
            chunk({"role": "assistant", "content": "", "annotations": [cited(1)]}),
            REST,
            chunk({"role": "assistant", "content": "", "annotations": [cited(2)]}),
            STOP,
        )
        + DONE,
        completion({"content": TEXT, "annotations": [cited(1), cited(2)]}),
        annotations=[cited(1), cited(2)],
    ),
    Dialect(
        "xAI",
        "citations in the last chunk",
        "docs.x.ai/docs/guides/live-search",
        data(FIRST, REST, chunk({}, "stop", citations=["https://a.example"])) + DONE,
        completion({"content": TEXT}, citations=["https://a.example"]),
        citations=["https://a.example"],
    ),
]

NO_TEXT = [
    Dialect(
        "OpenAI",
        "sound",
        "platform.openai.com/docs/guides/audio",
        data(
            chunk({"role": "assistant", "content": None, "audio": {"id": "audio_1", "transcript": "Grü"}}),
            chunk({"audio": {"data": "AAAA"}}),
            chunk({"audio": {"transcript": "ße"}}),
            chunk({"audio": {"expires_at": 1760003600}}),
            STOP,
        )
        + DONE,
        completion(
            {
                "content": None,
                "audio": {"id": "audio_1", "data": "AAAA", "transcript": "Grüße", "expires_at": 1760003600},
            }
        ),
        text="",
    ),
    Dialect(
        "OpenRouter",
        "an image",
        "open-webui/open-webui#18373; openrouter.ai/docs/features/multimodal/image-generation",
        data(
            FIRST,
            chunk(
                {
                    "role": "assistant",
                    "content": "",
                    "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
                }
            ),
            REST,
            STOP,
        )
        + DONE,
        completion(
            {
                "content": TEXT,
                "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
            }
        ),
    ),
]

DIALECTS = [*COUNTS, *REFUSED, *PROBABLE, *SOURCES, *NO_TEXT]
