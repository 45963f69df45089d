"""What the models of these tests answer, and what it costs."""

#: What `answer` says of its tokens, for each row that it answers.
INPUT_TOKENS, OUTPUT_TOKENS = 1_000, 200
#: gpt-4o-mini in a batch: $0.075 per million input tokens, $0.30 per million output tokens.
ROW_USD = 1_000 * 0.075e-6 + 200 * 0.30e-6


def answer(body):
    """A prompt that begins with a number gets that HTTP status, and the rest as the reason."""
    prompt = body["messages"][-1]["content"]
    first, _, rest = prompt.partition(" ")
    if first.isdigit() and first != "200":
        return int(first), {"error": {"message": rest, "code": f"code_{first}"}}
    choices = [{"message": {"content": f"answer to {prompt}"}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
    return 200, {"choices": choices, "usage": usage, "model": body["model"]}
