"""Fixtures: thinking, beside the text or among its parts."""

from __future__ import annotations

from dialects.form import DONE, FIRST, REST, STOP, TEXT, USAGE, Dialect, chunk, completion, data, encoded, escaped

THOUGHT = "Hm, ja"
PARTS = "leaves the parts of the content to its caller"


def thinking(text: str) -> list[dict[str, object]]:
    return [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]


def summed_up(text: str) -> list[dict[str, object]]:
    return [{"type": "reasoning", "summary": [{"type": "summary_text", "text": text, "signature": ""}]}]


DIALECTS = [
    Dialect(
        "DeepSeek",
        "reasoning_content, content null beside it",
        "api-docs.deepseek.com/guides/reasoning_model",
        data(
            chunk({"role": "assistant", "content": None, "reasoning_content": ""}, choice={"logprobs": None}),
            chunk({"content": None, "reasoning_content": "Hm,"}),
            chunk({"content": None, "reasoning_content": " ja"}),
            chunk({"content": "Grü", "reasoning_content": None}),
            chunk({"content": "ße 🙂", "reasoning_content": None}),
            chunk({"content": "", "reasoning_content": None}, "stop", usage=USAGE),
        )
        + DONE,
        completion({"content": TEXT, "reasoning_content": THOUGHT}, usage=USAGE),
        reasoning=THOUGHT,
        usage=USAGE,
    ),
    Dialect(
        "OpenRouter",
        "reasoning, and the same in reasoning_details",
        "huggingface/responses.js#19; spring-projects/spring-ai#5265",
        data(
            chunk(
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning": THOUGHT,
                    "reasoning_details": [{"index": 0, "type": "reasoning.text", "text": THOUGHT}],
                    "annotations": [],
                },
                choice={"native_finish_reason": None},
            ),
            chunk({"role": "assistant", "content": "Grü", "reasoning": None, "reasoning_details": []}),
            chunk({"role": "assistant", "content": "ße 🙂"}),
            STOP,
        )
        + DONE,
        completion(
            {
                "content": TEXT,
                "refusal": None,
                "reasoning": THOUGHT,
                "reasoning_details": [{"index": 0, "type": "reasoning.text", "text": THOUGHT}],
            }
        ),
        reasoning=THOUGHT,
    ),
    Dialect(
        "vLLM 0.11",
        "the same under its old name and its new one",
        "docs.vllm.ai/en/latest/features/reasoning_outputs.html",
        data(
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning": "Hm,", "reasoning_content": "Hm,"}),
            chunk({"reasoning": " ja", "reasoning_content": " ja"}),
            FIRST,
            REST,
            STOP,
        )
        + DONE,
        completion({"content": TEXT, "reasoning": THOUGHT, "reasoning_content": THOUGHT, "tool_calls": []}),
        reasoning=THOUGHT,
    ),
    Dialect(
        "LocalAI",
        "reasoning, and no content at all",
        "mudler/LocalAI#9722",
        data(chunk({"role": "assistant", "reasoning": "Hm,"}), chunk({"reasoning": " ja"}), STOP) + DONE,
        completion({"reasoning": THOUGHT}),
        text="",
        reasoning=THOUGHT,
    ),
    Dialect(
        "Mistral",
        "content is a list of parts",
        "BerriAI/litellm#16272; docs.mistral.ai/studio-api/conversations/reasoning",
        data(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": thinking("Hm,")}),
            chunk({"content": thinking(" ja")}),
            chunk({"content": [{"type": "text", "text": "Grü"}]}),
            chunk({"content": "ße 🙂"}),
            chunk({"content": ""}, "stop", usage=USAGE),
        )
        + DONE,
        completion({"content": [*thinking(THOUGHT), {"type": "text", "text": TEXT}], "tool_calls": None}, usage=USAGE),
        reasoning=THOUGHT,
        usage=USAGE,
        openai=PARTS,
        openai_whole=PARTS,
    ),
    Dialect(
        "Mistral",
        "thinking and text in one delta, a reference between the text",
        "docs.mistral.ai/capabilities/citations; mozilla-ai/any-llm-go#162",
        data(
            chunk(
                {
                    "role": "assistant",
                    "content": [
                        *thinking(THOUGHT),
                        {"type": "text", "text": "Grü"},
                        {"type": "reference", "reference_ids": [1]},
                        {"type": "text", "text": "ße 🙂"},
                    ],
                },
                "stop",
            )
        )
        + DONE,
        completion(
            {
                "content": [
                    *thinking(THOUGHT),
                    {"type": "text", "text": "Grü"},
                    {"type": "reference", "reference_ids": [1]},
                    {"type": "text", "text": "ße 🙂"},
                ]
            }
        ),
        reasoning=THOUGHT,
        openai=PARTS,
        openai_whole=PARTS,
    ),
    Dialect(
        "Databricks",
        "reasoning parts with a summary",
        "learn.microsoft.com/azure/databricks/machine-learning/model-serving/query-reason-models",
        data(
            chunk({"role": "assistant", "content": summed_up("Hm,")}),
            chunk({"role": "assistant", "content": summed_up(" ja")}),
            FIRST,
            REST,
            STOP,
        )
        + DONE,
        completion({"content": [*summed_up(THOUGHT), {"type": "text", "text": TEXT}]}),
        reasoning=THOUGHT,
        openai=PARTS,
        openai_whole=PARTS,
    ),
    Dialect(
        "Zhipu",
        "the last thought and the first text in one delta",
        "docs.z.ai/guides/capabilities/thinking",
        data(
            chunk({"role": "assistant", "reasoning_content": "Hm,"}),
            chunk({"role": "assistant", "reasoning_content": " ja", "content": "Grü"}),
            chunk({"role": "assistant", "content": "ße 🙂"}),
            chunk({"role": "assistant", "content": ""}, "stop", usage=USAGE),
        )
        + DONE,
        completion({"content": TEXT, "reasoning_content": THOUGHT}, usage=USAGE),
        reasoning=THOUGHT,
        usage=USAGE,
    ),
    Dialect(
        "a gateway in JavaScript",
        "a surrogate pair torn between two thoughts, text with a pair behind them",
        "elie222/rakazo#416",
        data(
            *(
                escaped({"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": {"reasoning_content": half}}]})
                for half in ("\ud83d", "\ude42")
            ),
            FIRST,
            REST,
            encoded({"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        )
        + DONE,
        reasoning="🙂",
    ),
]
