"""A conversation through one of the packages that people use: `python clients.py WAY`, in their own environment.

Standard input holds `url`, `key`, `model`, and the `turns` of a person, with `text` and `pictures` (data addresses).
Standard output is a list with what was said in each turn, and the tokens that the package counted (null: it does not).
"""

import asyncio
import json
import sys


def message(turn):
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in turn["pictures"]]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": turn["text"]}]}


def conversation(given, reply):
    """Ask turn by turn; `reply(messages)` returns what was said, the count of tokens, and the message to send back."""
    messages, said = [], []
    for turn in given["turns"]:
        messages.append(message(turn))
        text, tokens, back = reply(messages)
        messages.append(back)
        said.append([text, tokens])
    return said


def openai_whole(given):
    from openai import OpenAI

    client = OpenAI(base_url=given["url"], api_key=given["key"])

    def reply(messages):
        answer = client.chat.completions.create(model=given["model"], messages=messages, max_tokens=given["max_tokens"])
        return answer.choices[0].message.content, answer.usage.completion_tokens, answer.choices[0].message

    return conversation(given, reply)


def openai_stream(given):
    from openai import OpenAI

    client = OpenAI(base_url=given["url"], api_key=given["key"])

    def reply(messages):
        text, tokens = "", None
        options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": given["max_tokens"]}
        with client.chat.completions.create(model=given["model"], messages=messages, **options) as stream:
            for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return text, tokens, {"role": "assistant", "content": text}

    return conversation(given, reply)


def openai_async(given):
    from openai import AsyncOpenAI

    async def talk():
        async with AsyncOpenAI(base_url=given["url"], api_key=given["key"]) as client:
            messages, said = [], []
            for turn in given["turns"]:
                messages.append(message(turn))
                async with client.chat.completions.stream(
                    model=given["model"], messages=messages, max_tokens=given["max_tokens"]
                ) as stream:
                    final = await stream.get_final_completion()
                messages.append(final.choices[0].message)
                said.append([final.choices[0].message.content, None])
            return said

    return asyncio.run(talk())


def langchain(given):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=given["url"], api_key=given["key"], model=given["model"], max_tokens=given["max_tokens"])

    def reply(messages):
        answer = chat.invoke(messages)
        return answer.text, answer.usage_metadata["output_tokens"], answer

    return conversation(given, reply)


def langchain_stream(given):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=given["url"],
        api_key=given["key"],
        model=given["model"],
        max_tokens=given["max_tokens"],
        stream_usage=True,
    )

    def reply(messages):
        whole = None
        for chunk in chat.stream(messages):
            whole = chunk if whole is None else whole + chunk
        return whole.text, whole.usage_metadata["output_tokens"], {"role": "assistant", "content": whole.text}

    return conversation(given, reply)


def litellm_options(given, messages):
    return {
        "model": "openai/" + given["model"],
        "api_base": given["url"],
        "api_key": given["key"],
        "messages": messages,
        "max_tokens": given["max_tokens"],
    }


def litellm(given):
    from litellm import completion

    def reply(messages):
        answer = completion(**litellm_options(given, messages))
        return answer.choices[0].message.content, answer.usage.completion_tokens, answer.choices[0].message

    return conversation(given, reply)


def litellm_stream(given):
    from litellm import completion

    def reply(messages):
        text, finish = "", None
        for chunk in completion(**litellm_options(given, messages), stream=True):
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        if finish not in ("stop", "length"):
            raise ValueError(f"the stream ended with {finish!r}")
        return text, None, {"role": "assistant", "content": text}

    return conversation(given, reply)


def openai_leaves(given):
    """Begin each reply, and leave it after its first words."""
    from openai import OpenAI

    client = OpenAI(base_url=given["url"], api_key=given["key"])
    for turn in given["turns"]:
        with client.chat.completions.create(
            model=given["model"], messages=[message(turn)], stream=True, max_tokens=given["max_tokens"]
        ) as stream:
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
    return []


def openai_errors(given):
    """What a refused request becomes: the exception's name, and the field that it tells."""
    import openai

    client = openai.OpenAI(base_url=given["url"], api_key=given["key"], max_retries=0)
    found = []
    for changes in (
        {"temperature": 5},
        {"model": "other"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ):
        try:
            client.chat.completions.create(
                **{"model": given["model"], "messages": [{"role": "user", "content": "Hi"}], **changes}
            )
        except openai.APIStatusError as error:
            found.append([type(error).__name__, error.param])
    try:
        openai.OpenAI(base_url=given["url"], api_key="wrong", max_retries=0).models.list()
    except openai.APIStatusError as error:
        found.append([type(error).__name__, error.code])
    return found


if __name__ == "__main__":
    json.dump(globals()[sys.argv[1]](json.load(sys.stdin)), sys.stdout)
