"""Fixtures: how a server says that it failed, in an answer whose status is 200."""

from __future__ import annotations

from dataclasses import replace

from berlin_chat import APIStatusError, ChatError
from dialects.form import DONE, FIRST, REST, STOP, TEXT, Dialect, chunk, completion, data, encoded

MISSES_IT = "misses the error"
FAILED = {"code": 502, "message": "the provider went away"}
SAYS = "the provider went away"
UNFILTERED = {"error": {"code": "content_filter_error", "message": "The contents are not filtered"}}

BESIDE = Dialect(
    "OpenRouter",
    "an error beside choices",
    "openrouter.ai/docs/api-reference/errors-and-debugging; damianvtran/local-operator#223",
    data(
        FIRST,
        REST,
        chunk(
            {"content": ""},
            "error",
            choice={"native_finish_reason": "error"},
            error={**FAILED, "metadata": {"error_type": "provider_unavailable"}},
        ),
    )
    + DONE,
    error=APIStatusError,
    says=SAYS,
)
FIELD = Dialect(
    "llama.cpp b5966",
    "error: as a field of the event stream, then [DONE]",
    "coddy-project/coddy-agent#106; ggml-org/llama.cpp#16109",
    data(chunk({"role": "assistant", "content": None}), FIRST, REST)
    + b'error: {"code":500,"message":"the provider went away","type":"server_error"}\n\n'
    + DONE,
    error=APIStatusError,
    says=SAYS,
    openai=MISSES_IT,
)

DIALECTS = [
    BESIDE,
    replace(BESIDE, end="done"),
    Dialect(
        "OpenRouter",
        "an error beside empty choices",
        "diegosouzapw/OmniRoute#8210",
        b": OPENROUTER PROCESSING\n\n"
        + data(
            encoded({"id": "c-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [], "error": FAILED})
        ),
        text="",
        error=APIStatusError,
        says=SAYS,
    ),
    Dialect(
        "OpenRouter",
        "an error in the choice",
        "hotovo/aider-desk#103",
        data(
            FIRST,
            REST,
            chunk(
                {"role": "assistant", "content": ""},
                "error",
                choice={"native_finish_reason": "error", "error": {**FAILED, "metadata": {"provider_name": "P-1"}}},
            ),
        )
        + DONE,
        # What has come of the text is lost to nobody: unstreamed it is the error's partial, too.
        completion({"content": TEXT}, "error", choice={"error": FAILED}),
        error=APIStatusError,
        says=SAYS,
        openai=MISSES_IT,
        openai_whole=MISSES_IT,
    ),
    Dialect(
        "OpenRouter",
        'finish_reason "error", and not a word',
        "openrouter.ai/docs/api-reference/overview, finish reason",
        data(FIRST, REST, chunk({"content": ""}, "error")) + DONE,
        completion({"content": TEXT}, "error"),
        error=APIStatusError,
        openai=MISSES_IT,
        openai_whole=MISSES_IT,
    ),
    Dialect(
        "OpenRouter",
        "nothing but an error",
        "openrouter.ai/docs/errors",
        data(encoded({"error": FAILED})),
        encoded({"error": FAILED, "user_id": "u-1"}),
        text="",
        error=APIStatusError,
        says=SAYS,
        openai_whole="gives a completion without choices",
    ),
    Dialect(
        "vLLM",
        'an object that is an "error"',
        "block/goose#8031; vllm/entrypoints/openai, create_streaming_error_response",
        data(
            FIRST,
            REST,
            encoded({"object": "error", "message": SAYS, "type": "InternalServerError", "param": None, "code": 500}),
        )
        + DONE,
        error=APIStatusError,
        says=SAYS,
        openai=MISSES_IT,
    ),
    Dialect(
        "FastChat",
        'an unstreamed object that is an "error"',
        "lm-sys/FastChat#1475",
        whole=encoded({"object": "error", "message": SAYS, "code": 50001}),
        text="",
        error=APIStatusError,
        says=SAYS,
        openai_whole="gives a completion without choices",
    ),
    # No word of the protocol says that this is an error; but it must not pass for a reply.
    Dialect(
        "FastChat",
        "an error_code, then [DONE]",
        "lm-sys/FastChat#3367",
        data(
            chunk({"role": "assistant"}),
            encoded({"text": "LENGTH EXCEEDED\n\n(max_tokens must be at least 1)", "error_code": 50001}),
        )
        + DONE,
        text="",
        error=ChatError,
        openai=MISSES_IT,
    ),
    FIELD,
    replace(FIELD, oddity=f"{FIELD.oddity}, before any text", body=FIELD.body[FIELD.body.index(b"error:") :], text=""),
    replace(FIELD, end="done"),
    Dialect(
        "llama.cpp",
        "an error in the middle of the text",
        "ggml-org/llama.cpp#16109",
        data(FIRST, REST, encoded({"error": {"code": 500, "message": SAYS, "type": "server_error"}})),
        error=APIStatusError,
        says=SAYS,
    ),
    Dialect(
        "TGI",
        "an error that is a str",
        "huggingface/text-generation-inference#2668",
        data(encoded({"error": SAYS, "error_type": "validation"}), before=b"data:"),
        encoded({"error": SAYS, "error_type": "validation"}),
        text="",
        error=APIStatusError,
        says=SAYS,
        openai_whole="gives a completion without choices",
    ),
    Dialect(
        "Groq",
        "an error in x_groq",
        "groq/groq-python, src/groq/types/chat/chat_completion_chunk.py, XGroq",
        data(FIRST, REST, chunk({}, x_groq={"id": "req_1", "error": SAYS})) + DONE,
        error=APIStatusError,
        says=SAYS,
        openai=MISSES_IT,
    ),
    Dialect(
        "LM Studio",
        "an event that is called error",
        "zendev-sh/goai#110",
        data(FIRST, REST)
        + b'event: error\ndata: {"error":{"message":"the provider went away"},"message":"the provider went away"}\n\n',
        error=APIStatusError,
        says=SAYS,
    ),
    Dialect(
        "LiteLLM",
        "an error with a code that is a str, then [DONE]",
        "BerriAI/litellm#39288",
        data(
            FIRST,
            REST,
            encoded({"error": {"message": SAYS, "type": "None", "param": "None", "code": "500"}}),
        )
        + DONE,
        error=APIStatusError,
        says=SAYS,
    ),
    # An error of the filter is none of the reply: the text has only not been filtered.
    Dialect(
        "Azure OpenAI",
        "an error inside of content_filter_results",
        "learn.microsoft.com/azure/ai-services/openai/concepts/content-filter",
        data(FIRST, chunk({"content": "ße 🙂"}, choice={"content_filter_results": UNFILTERED}), STOP) + DONE,
        completion({"content": TEXT}, choice={"content_filter_results": UNFILTERED}),
    ),
    # The server's own words for other ends are handed on as they are.
    Dialect(
        "Zhipu",
        'finish_reason "network_error", a word of its own',
        "promptfoo/promptfoo#9905; docs.z.ai/api-reference/llm/chat-completion",
        data(FIRST, REST, chunk({"role": "assistant", "content": ""}, "network_error")) + DONE,
        completion({"content": TEXT}, "network_error"),
        finish_reason="network_error",
    ),
]
