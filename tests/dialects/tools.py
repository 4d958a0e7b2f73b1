"""Fixtures: calls of tools, whole or in deltas."""

from __future__ import annotations

from dialects.form import (
    CALLS,
    CLOCK,
    DONE,
    STOP,
    TEXT,
    USAGE,
    WEATHER,
    Dialect,
    called,
    chunk,
    completion,
    data,
)

MERGES = "puts calls together that have no index, or the same"
NO_FUNCTION_CALL = "keeps a function_call apart from the tool calls"
ROLE = chunk({"role": "assistant", "content": None})
END = chunk({}, "tool_calls")
NAMELESS = {"id": "", "type": "function"}
#: Both calls, unstreamed.
BOTH = completion({"content": None, "tool_calls": [WEATHER, CLOCK]}, "tool_calls")
ONE = completion({"content": None, "tool_calls": [WEATHER]}, "tool_calls")


def asks(*deltas: object) -> bytes:
    """Chunks with these lists of tool-call deltas."""
    return data(*(chunk({"tool_calls": delta}) for delta in deltas))


DIALECTS = [
    Dialect(
        "OpenAI",
        "two tool calls, one after the other",
        "platform.openai.com/docs/guides/function-calling",
        data(ROLE)
        + asks(
            [called(0, "call_1", "weather", "")],
            [called(0, arguments='{"city":')],
            [called(0, arguments='"Köln"}')],
            [called(1, "call_2", "clock", "")],
            [called(1, arguments='{"zone":"CET"}')],
        )
        + data(END)
        + DONE,
        completion({"content": None, "tool_calls": [WEATHER, CLOCK], "refusal": None, "annotations": []}, "tool_calls"),
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
    ),
    Dialect(
        "vLLM",
        "two tool calls, interleaved, both in one delta",
        "docs.vllm.ai/en/latest/features/tool_calling.html",
        data(ROLE)
        + asks(
            [called(0, "call_1", "weather"), called(1, "call_2", "clock")],
            [called(1, arguments='{"zone":'), called(0, arguments='{"city":')],
            [called(0, arguments='"Köln"}')],
            [called(1, arguments='"CET"}')],
        )
        + data(END)
        + DONE,
        BOTH,
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
    ),
    Dialect(
        "vLLM 0.6",
        "an empty delta of the call in the finishing chunk",
        "vercel/ai#3953",
        data(ROLE)
        + asks([called(0, "call_1", "weather")], [called(0, arguments=CALLS[0][2])])
        + data(
            chunk({"tool_calls": [called(0, arguments="")]}, "tool_calls", choice={"stop_reason": 128008}, usage=USAGE)
        )
        + DONE,
        text="",
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
        usage=USAGE,
    ),
    Dialect(
        "vLLM behind Llama Stack",
        "arguments null in the first delta and in the last",
        "ogx-ai/ogx#5462; odysseus-dev/odysseus#2922",
        data(ROLE)
        + asks(
            [{**called(0, "call_1", "weather"), "function": {"name": "weather", "arguments": None}}],
            [called(0, arguments=CALLS[0][2])],
            [{"index": 0, "function": {"name": None, "arguments": None}}],
        )
        + data(END)
        + DONE,
        text="",
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
    ),
    Dialect(
        "Ollama 0.4",
        "calls whole, without an index",
        "ollama/ollama#7881",
        data(
            chunk({"role": "assistant", "content": "", "tool_calls": [WEATHER]}),
            chunk({"role": "assistant", "content": "", "tool_calls": [CLOCK]}),
            chunk({"role": "assistant", "content": ""}, "stop"),
        )
        + DONE,
        completion({"content": "", "tool_calls": [WEATHER, CLOCK]}, "stop"),
        text="",
        tool_calls=CALLS,
        openai=MERGES,
    ),
    Dialect(
        "Ollama 0.20",
        "calls whole, all with the index 0",
        "ollama/ollama#15457",
        data(
            chunk({"role": "assistant", "content": "", "tool_calls": [called(0, *CALLS[0])]}),
            chunk({"role": "assistant", "content": "", "tool_calls": [called(0, *CALLS[1])]}),
            chunk({"role": "assistant", "content": ""}, "tool_calls"),
        )
        + DONE,
        completion({"content": "", "tool_calls": [called(0, *CALLS[0]), called(1, *CALLS[1])]}, "tool_calls"),
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
        openai=MERGES,
    ),
    Dialect(
        "Dynamo",
        "calls in deltas, all with the index 0",
        "ai-dynamo/dynamo#4723; su-kaka/gcli2api#406",
        data(ROLE)
        + asks(
            [called(0, "call_1", "weather", '{"city":')],
            [called(0, arguments='"Köln"}')],
            [called(0, "call_2", "clock", '{"zone":')],
            [called(0, arguments='"CET"}')],
        )
        + data(END)
        + DONE,
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
        openai=MERGES,
    ),
    Dialect(
        "Gemini",
        "calls whole, without an index, with extra_content",
        "THU-MAIC/OpenMAIC#1556; open-webui/computer#224",
        data(
            chunk(
                {
                    "role": "assistant",
                    "tool_calls": [{**WEATHER, "extra_content": {"google": {"thought_signature": "c2ln"}}}],
                }
            ),
            chunk({"role": "assistant", "tool_calls": [CLOCK]}),
            chunk({"role": "assistant", "extra_content": {"google": {"thought_signature": "c2ln"}}}, "stop"),
        )
        + DONE,
        completion(
            {
                "tool_calls": [{**WEATHER, "extra_content": {"google": {"thought_signature": "c2ln"}}}, CLOCK],
                "extra_content": {"google": {"thought_signature": "c2ln"}},
            },
            "stop",
        ),
        text="",
        tool_calls=CALLS,
        openai=MERGES,
    ),
    Dialect(
        "Gemini",
        "both calls in one delta, without an index",
        "open-webui/computer#224",
        data(chunk({"role": "assistant", "tool_calls": [WEATHER, CLOCK]}, "stop")) + DONE,
        text="",
        tool_calls=CALLS,
        openai=MERGES,
    ),
    Dialect(
        "Gemini",
        "a call in deltas, without an index",
        "open-webui/computer#224",
        asks(
            [called(None, "call_1", "weather", '{"city":')],
            [called(None, arguments='"Köln"}')],
            [called(None, "call_2", "clock", '{"zone":')],
            [called(None, arguments='"CET"}')],
        )
        + data(STOP)
        + DONE,
        text="",
        tool_calls=CALLS,
        openai=MERGES,
    ),
    Dialect(
        "DeepSeek and Qwen",
        "the id in each delta",
        "langchain4j/langchain4j#4544",
        data(ROLE)
        + asks(
            [called(0, "call_1", "weather", "")],
            [called(0, "call_1", arguments='{"city":')],
            [called(0, "call_1", arguments='"Köln"}')],
            [called(1, "call_2", "clock", "")],
            [called(1, "call_2", arguments='{"zone":"CET"}')],
        )
        + data(END)
        + DONE,
        BOTH,
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
    ),
    Dialect(
        "a gateway behind LiteLLM",
        "the id and the name in each delta",
        "AstrBotDevs/AstrBot#7765",
        data(ROLE)
        + asks(
            [called(0, "call_1", "weather", "")],
            [called(0, "call_1", "weather", '{"city":')],
            [called(0, "call_1", "weather", '"Köln"}')],
        )
        + data(END)
        + DONE,
        text="",
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
        openai="puts the names together",
    ),
    Dialect(
        "DashScope",
        'the id "" after the first delta, arguments null at the end',
        "help.aliyun.com/zh/model-studio/qwen-function-calling",
        data(chunk({"role": "assistant", "content": None}, usage=None))
        + asks(
            [called(0, "call_1", "weather", "")],
            [{"index": 0, "id": "", "type": "function", "function": {"arguments": '{"city":'}}],
            [{"index": 0, "id": "", "type": "function", "function": {"name": "", "arguments": '"Köln"}'}}],
            [{"index": 0, "id": "", "type": "function", "function": {"arguments": None}}],
        )
        + data(END)
        + DONE,
        ONE,
        text="",
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
    ),
    Dialect(
        "LiteLLM in front of Responses",
        "indexes that begin at 1",
        "pipecat-ai/pipecat#4987",
        data(ROLE)
        + asks(
            [called(1, "call_1", "weather", "")],
            [called(1, arguments=CALLS[0][2])],
            [called(2, "call_2", "clock", "")],
            [called(2, arguments=CALLS[1][2])],
        )
        + data(END)
        + DONE,
        text="",
        tool_calls=CALLS,
        finish_reason="tool_calls",
    ),
    Dialect(
        "LiteLLM in front of Ollama",
        "a call without an id",
        "BerriAI/litellm#11262",
        data(ROLE)
        + asks(
            [{"index": 0, "id": None, "type": "function", "function": {"name": "weather", "arguments": CALLS[0][2]}}]
        )
        + data(END)
        + DONE,
        completion(
            {"content": None, "tool_calls": [{"id": None, "type": "function", "function": WEATHER["function"]}]},
            "tool_calls",
        ),
        text="",
        tool_calls=((None, *CALLS[0][1:]),),
        finish_reason="tool_calls",
    ),
    Dialect(
        "MiniMax",
        "arguments that are an object",
        "can1357/oh-my-pi#1779",
        data(ROLE) + asks([called(0, "call_1", "weather", {"city": "Köln"})]) + data(END) + DONE,
        text="",
        tool_calls=CALLS[:1],
        parsed=True,
        finish_reason="tool_calls",
        openai="puts str and dict together",
    ),
    Dialect(
        "llama.cpp of March 2026",
        "arguments that are an object, unstreamed",
        "ggml-org/llama.cpp#20198",
        whole=completion(
            {"content": "", "tool_calls": [called(None, "call_1", "weather", {"city": "Köln"})]}, "tool_calls"
        ),
        text="",
        tool_calls=CALLS[:1],
        parsed=True,
        finish_reason="tool_calls",
        openai_whole="leaves the object in place of a str",
    ),
    Dialect(
        "TGI 1.4 to 2",
        "one object in place of a list of calls, no ids",
        "huggingface/text-generation-inference, integration-tests, test_flash_llama_grammar_tools_stream.json",
        data(
            *(
                chunk(
                    {"role": "assistant", "content": None, "tool_calls": {**called(0, arguments=part), **NAMELESS}},
                    choice={"logprobs": None},
                    id="",
                )
                for part in ('{"city":', '"Köln"}')
            ),
            chunk({"role": "assistant", "content": ""}, "eos_token", choice={"logprobs": None}, id="", usage=USAGE),
            before=b"data:",
        ).replace(b'"function":{', b'"function":{"name":"weather",', 1)
        + DONE,
        text="",
        tool_calls=((None, *CALLS[0][1:]),),
        finish_reason="eos_token",
        usage=USAGE,
        id=None,
        openai="iterates over the object's keys",
    ),
    Dialect(
        "TGI 3.1",
        'the name in each delta, the id ""',
        "huggingface/text-generation-inference, integration-tests, test_flash_llama_grammar_tools_stream.json",
        data(
            *(
                chunk(
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{**called(0, None, "weather", part), **NAMELESS}],
                    },
                    choice={"logprobs": None},
                    id="",
                    usage=None,
                )
                for part in ('{"city":', '"Köln"}')
            ),
            chunk({"role": "assistant", "content": ""}, "tool_calls", choice={"logprobs": None}, id="", usage=USAGE),
            before=b"data:",
        )
        + DONE,
        text="",
        tool_calls=((None, *CALLS[0][1:]),),
        finish_reason="tool_calls",
        usage=USAGE,
        id=None,
        openai="puts the names together",
    ),
    Dialect(
        "TGI 2",
        "arguments that are an object, unstreamed",
        "huggingface/text-generation-inference, integration-tests/models/test_tools_llama.py",
        whole=completion(
            {"tool_calls": [called(None, "0", "weather", {"city": "Köln"})]}, choice={"logprobs": None}, id=""
        ).replace(b'"function":{', b'"function":{"description":null,'),
        text="",
        tool_calls=(("0", *CALLS[0][1:]),),
        parsed=True,
        id=None,
        openai_whole="leaves the object in place of a str",
    ),
    Dialect(
        "a model that needs nothing",
        'arguments "" to the end',
        "sigoden/aichat#1217",
        data(ROLE) + asks([called(0, "call_1", "where", "")]) + data(END) + DONE,
        completion({"content": None, "tool_calls": [called(None, "call_1", "where", "")]}, "tool_calls"),
        text="",
        tool_calls=(("call_1", "where", ""),),
        finish_reason="tool_calls",
    ),
    Dialect(
        "Anthropic",
        "text before the calls",
        "platform.claude.com/docs/en/api/openai-sdk; BerriAI/litellm#5231",
        data(chunk({"role": "assistant", "content": "Grü"}), chunk({"content": "ße 🙂"}))
        + asks([called(0, "call_1", "weather", "")], [called(0, arguments=CALLS[0][2])])
        + data(END)
        + DONE,
        completion({"content": TEXT, "tool_calls": [WEATHER]}, "tool_calls"),
        tool_calls=CALLS[:1],
        finish_reason="tool_calls",
    ),
    Dialect(
        "OpenAI of June 2023",
        "a function_call",
        "langchain4j/langchain4j#29",
        data(
            chunk({"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": ""}}),
            chunk({"function_call": {"arguments": '{"city":'}}),
            chunk({"function_call": {"arguments": '"Köln"}'}}),
            chunk({}, "function_call"),
        )
        + DONE,
        completion({"content": None, "function_call": {"name": "weather", "arguments": CALLS[0][2]}}, "function_call"),
        text="",
        tool_calls=((None, *CALLS[0][1:]),),
        finish_reason="function_call",
        openai=NO_FUNCTION_CALL,
        openai_whole=NO_FUNCTION_CALL,
    ),
    Dialect(
        "LiteLLM",
        "function_call null and tool_calls [] beside the text",
        "BerriAI/litellm#8193",
        data(
            chunk({"role": "assistant", "content": "Grü", "function_call": None, "tool_calls": None, "audio": None}),
            chunk({"content": "ße 🙂", "function_call": None, "tool_calls": [], "refusal": None}),
            STOP,
        )
        + DONE,
        completion({"content": TEXT, "function_call": None, "tool_calls": None, "audio": None}),
    ),
]
