"""Fixtures: how events are parted, labelled and kept company."""

from __future__ import annotations

import json

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
)

NOT_PARTED = "takes events that no blank line parts for one"
NO_JSON = "takes each event's data for JSON"
NO_STREAM = "finds no event in a body that is no stream"
NO_COMPLETION = "gives the body as a str"

COMMENTS = [
    Dialect(
        "DeepSeek",
        "keep-alive comments, and blank lines before an unstreamed reply",
        "api-docs.deepseek.com/quick_start/rate_limit",
        b": keep-alive\n\n: keep-alive\n\n" + data(FIRST, REST) + b": keep-alive\n\n" + data(STOP) + DONE,
        b"\n\n\n\n" + WHOLE,
    ),
    Dialect(
        "OpenRouter",
        "comments that say it is at work, and spaces before an unstreamed reply",
        "openai/openai-go#227; openrouter.ai/docs/api-reference/streaming",
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
        + data(
            chunk(
                {"role": "assistant", "content": "Grü"},
                choice={"native_finish_reason": None, "logprobs": None},
                provider="P-1",
            ),
            chunk({"role": "assistant", "content": "ße 🙂"}, choice={"native_finish_reason": None}, provider="P-1"),
            chunk(
                {"role": "assistant", "content": ""},
                "stop",
                choice={"native_finish_reason": "completed"},
                provider="P-1",
            ),
        )
        + DONE,
        b"\n         \n         \n" + WHOLE,
    ),
    Dialect(
        "llama.cpp",
        "comments that are a colon alone",
        "ollama/ollama#16443",
        b":\n\n" + data(FIRST) + b":\n\n" + data(REST, STOP) + DONE,
    ),
    Dialect(
        "mlx-lm",
        "comments that tell of progress",
        "ml-explore/mlx-lm, mlx_lm/server.py",
        b": keepalive 0/12\n\n: keepalive 12/12\n\n" + data(FIRST, REST, STOP) + DONE,
    ),
    Dialect(
        "new-api",
        "comments in capitals between events",
        "QuantumNous/new-api#6981",
        data(FIRST) + b": PING\n\n" + data(REST) + b": PING\n\n" + data(STOP) + DONE,
    ),
    Dialect(
        "text-generation-webui",
        "pings of sse-starlette, with CRLF",
        "betalgo/openai#472",
        b": ping - 2024-01-09 08:00:00.000000\r\n\r\n" + PLAIN.replace(b"\n", b"\r\n"),
    ),
]

LINE_ENDS = [
    Dialect("llama-cpp-python", "CRLF", "abetlen/llama-cpp-python#1188", PLAIN.replace(b"\n", b"\r\n")),
    Dialect(
        "sse-starlette",
        "CR alone, its option sep",
        "sysid/sse-starlette, sse_starlette/sse.py",
        PLAIN.replace(b"\n", b"\r"),
    ),
    Dialect(
        "KoboldCpp 1.4x",
        "CRLF, and [DONE] without any line end",
        "LostRuins/koboldcpp, koboldcpp.py, send_oai_sse_event",
        data(FIRST, REST, STOP, after=b"\r\n\r\n") + b"data: [DONE]",
    ),
    Dialect(
        "AgentRouter",
        "events parted by one newline, null among them",
        "Kilo-Org/kilocode#3083",
        data(
            chunk({"reasoning_content": "Hm"}, choice={"logprobs": None}, usage=None),
            b"null",
            chunk({"content": "Grü"}, choice={"logprobs": None}, usage=None),
            chunk({"content": "ße 🙂"}, choice={"logprobs": None}, usage=None),
            chunk({}, "stop", choice={"logprobs": None}, usage=USAGE),
            after=b"\n",
        )
        + b"data: [DONE]\n",
        reasoning="Hm",
        usage=USAGE,
        openai=NOT_PARTED,
    ),
    Dialect(
        "GLM-4.7 and Kimi-K2.5",
        "events of tool calls parted by one newline",
        "rexxars/eventsource-parser#31",
        data(chunk({"role": "assistant", "content": ""}))
        + data(
            chunk({"tool_calls": [called(0, "call_1", "weather", "")]}),
            chunk({"tool_calls": [called(0, arguments='{"city":')]}),
            chunk({"tool_calls": [called(0, arguments='"Köln"}')]}),
            after=b"\n",
        )
        + b"\n"
        + data(chunk({}, "tool_calls"))
        + DONE,
        text="",
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
        openai=NOT_PARTED,
    ),
    Dialect(
        "TGI 1.4",
        "no space after data:, one newline after each event",
        "huggingface/text-generation-inference#1648",
        data(
            chunk({"role": "assistant", "content": "Grü"}, choice={"logprobs": None}),
            chunk({"role": "assistant", "content": "ße 🙂"}, "length", choice={"logprobs": None}),
            before=b"data:",
            after=b"\n",
        ),
        finish_reason="length",
        openai=NOT_PARTED,
    ),
    Dialect(
        "a GPT-4 proxy",
        "two blank lines after each event, and no finish_reason until there is one",
        "Mintplex-Labs/anything-llm#1475",
        data(
            encoded({"choices": [{"delta": {"content": "Grü", "role": "assistant"}, "index": 0}], "id": "c-1"}),
            encoded({"choices": [{"delta": {"content": "ße 🙂"}, "index": 0}], "model": "m-1", "id": "c-1"}),
            encoded({"choices": [{"delta": {}, "finish_reason": "stop", "index": 0}], "model": "m-1", "id": "c-1"}),
            after=b"\n\n\n",
        )
        + DONE,
    ),
    Dialect(
        "a pretty-printing proxy",
        "JSON over several data: lines",
        "SamSaffron/term-llm#456",
        b"".join(
            data(*json.dumps(json.loads(event), indent=2, ensure_ascii=False).encode().split(b"\n"), after=b"\n")
            + b"\n"
            for event in (FIRST, REST, STOP)
        )
        + DONE,
        json.dumps(json.loads(WHOLE), indent=2, ensure_ascii=False).encode() + b"\n",
    ),
]

EVENTS_OF_NOTHING = [
    Dialect(
        "llama.cpp in front of coddy",
        "blank data: as a keep-alive",
        "coddy-project/coddy-agent#106",
        b"data: \n\ndata:\n\n" + data(FIRST) + b"data\n\n" + data(REST) + b"data: \n\n" + data(STOP) + DONE,
        openai=NO_JSON,
    ),
    Dialect(
        "sub2api",
        "Anthropic's ping among the chunks",
        "Wei-Shaw/sub2api#7097",
        b'event: ping\ndata: {"type": "ping"}\n\n'
        + data(FIRST)
        + b'event: ping\ndata: {"type": "ping"}\n\n'
        + data(REST, STOP)
        + DONE,
    ),
    Dialect(
        "llama.cpp b4275",
        "an empty object before the finishing chunk",
        "ggml-org/llama.cpp#10694",
        data(FIRST, REST, b"{}", chunk({}, "stop", usage=USAGE, timings={"prompt_n": 1})) + DONE,
        usage=USAGE,
    ),
    Dialect(
        "an upstream of pi",
        "null in place of a chunk",
        "earendil-works/pi#2466",
        data(FIRST, b"null", REST, STOP) + DONE,
        openai="gives None as a chunk",
    ),
    Dialect(
        "Open WebUI",
        "an object of sources",
        "open-webui/open-webui, backend/open_webui/utils/middleware.py",
        data(
            encoded({"sources": [{"source": {"name": "a.txt"}, "document": ["Grüße"], "metadata": [{}]}]}),
            FIRST,
            REST,
            STOP,
        )
        + DONE,
    ),
]

LABELS = [
    Dialect(
        "vllm-ascend's proxy",
        "an event stream labelled application/json",
        "vllm-project/vllm-ascend#6985",
        PLAIN,
        kind="application/json",
    ),
    Dialect(
        "LitServe",
        "an event stream labelled application/x-ndjson",
        "Lightning-AI/LitServe#359",
        PLAIN,
        kind="application/x-ndjson",
    ),
    Dialect(
        "RamaLama's RAG proxy",
        "an event stream labelled text/plain",
        "containers/ramalama#2902",
        PLAIN,
        kind="text/plain; charset=utf-8",
    ),
    Dialect(
        "laravel-swoole's relay",
        "an event stream labelled text/html, a newline before each event",
        "swooletw/laravel-swoole#547",
        b"\n" + data(FIRST, REST, STOP, after=b"\n\n\n") + DONE,
        kind="text/html; charset=UTF-8",
    ),
    Dialect("private-ml-sdk", "no label", "nearai/private-ml-sdk#20", PLAIN, kind=None),
    Dialect(
        "cortex.cpp",
        "a completion labelled text/html",
        "janhq/cortex.cpp#465",
        whole=WHOLE,
        whole_kind="text/html; charset=utf-8",
    ),
    Dialect(
        "mistral.rs",
        "a completion labelled text/plain",
        "EricLBuehler/mistral.rs#79",
        whole=completion({"content": TEXT}, choice={"logprobs": None}, usage={**USAGE, "avg_tok_per_sec": 46.5}),
        whole_kind="text/plain; charset=utf-8",
        usage={**USAGE, "avg_tok_per_sec": 46.5},
    ),
    Dialect(
        "Jan",
        "a completion labelled text/event-stream",
        "janhq/jan#2560",
        whole=WHOLE,
        whole_kind="text/event-stream",
    ),
    Dialect(
        "9router",
        "a completion labelled text/event-stream, [DONE] behind it",
        "decolua/9router#3492",
        whole=WHOLE + b"\n\ndata: [DONE]\n\n",
        whole_kind="text/event-stream",
        openai_whole=NO_COMPLETION,
    ),
    Dialect(
        "WebAI-to-API",
        "a completion although a stream was asked for",
        "Amm1rr/WebAI-to-API#57",
        completion({"content": TEXT}, usage=USAGE),
        kind="application/json",
        usage=USAGE,
        openai=NO_STREAM,
    ),
    Dialect(
        "Unsloth",
        "a stream although none was asked for",
        "unslothai/unsloth#6570",
        whole=PLAIN,
        whole_kind="text/event-stream",
        openai_whole=NO_COMPLETION,
    ),
]

DIALECTS = [*COMMENTS, *LINE_ENDS, *EVENTS_OF_NOTHING, *LABELS]
