"""Many replies at once: together as alone, whoever joins, leaves or fails meanwhile."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from minichat.errors import PromptError
from minichat.inference.bot import MiniChat, Sights
from minichat.inference.engine import Engine, why_alone
from minichat.inference.generate import logits_processors, stream
from minichat.inference.kv_cache import KeyValuePool, KVCache, PrefixTree, shared
from minichat.inference.request import Prompt, Request, Sight
from minichat.inference.sampling import GenerationSettings, ReplyText, Sampler, Stops, noise_generator
from minichat.prompt.conversation import Conversation
from tests.interrupted import interrupted_at
from tests.tiny import counting, noise_picture, tiny_bot

# Rows of a batch are added up in another order than one row alone: float32 logits of these networks, which are about
# 10, then differ by up to 1e-5. Where two ids are nearer than this, either may be the likeliest.
NEAR = 1e-3


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot()


def prompt_of(bot: MiniChat, *turns: tuple[str, int]) -> Prompt:
    """Questions with pictures, given by the first one's number, and a reply between two of them."""
    asked = Conversation()
    for number, (text, picture) in enumerate(turns):
        asked = asked.assistant("It is red.") if number else asked
        asked = asked.user(text, [noise_picture(picture)] if picture else [])
    rendered = bot.processor.render(asked, add_generation_prompt=True)
    features = bot.encode(rendered.pictures) if rendered.pictures else None
    names = [f"picture {picture}" for _, picture in turns if picture]
    slots = iter([name for name in names for _ in range(bot.processor.num_image_tokens)])
    keys = [next(slots) if i == bot.processor.image_token_id else i for i in rendered.ids]
    return Prompt(rendered.ids, keys, features)


def prompts_of(bot: MiniChat) -> list[Prompt]:
    return [
        prompt_of(bot, ("Hi", 0)),
        prompt_of(bot, ("What is it?", 1)),
        prompt_of(bot, ("Compare them, please, in detail.", 2), ("And this?", 3)),
        prompt_of(bot, ("Which is larger, the green square or the purple triangle?", 0)),
        prompt_of(bot, ("What is it?", 1), ("Is it yellow?", 0), ("Is it left of the cat?", 0)),
        prompt_of(bot, ("What is it?", 4)),
    ]


def request_of(bot: MiniChat, prompt: Prompt, cancelled: Any = lambda: False, **changes: Any) -> Request:
    changes = {"max_new_tokens": 8, **changes}
    return Request(prompt, GenerationSettings(**changes), bot.processor.content_tokenizer, bot.stops, cancelled)


def alone(bot: MiniChat, prompt: Prompt, **changes: Any) -> list[int]:
    """The ids of the loop for one reply."""
    reply = ReplyText(bot.processor.content_tokenizer, bot.stops)
    changes = {"max_new_tokens": 8, **changes}
    list(stream(bot.model, prompt, KVCache(), GenerationSettings(**changes), reply))
    return reply.generated


def together(bot: MiniChat, requests: list[Request], **options: Any) -> list[list[int]]:
    engine = Engine(bot.model, **{"kept_bytes": 0, **options})
    done = list(engine.run(requests))
    assert done == requests
    assert [each.error for each in done] == [None] * len(done)
    idle(engine)
    return [each.ids for each in done]


def idle(engine: Engine) -> None:
    """Nothing is left of what was asked."""
    assert (engine._all, engine._running, engine._reading) == ([], [], [])
    assert engine._pool.nbytes == 0
    assert not engine.step_lock.taken


def margin(bot: MiniChat, prompt: Prompt, ids: list[int]) -> Tensor:
    """By how much each id of a greedy reply was likelier than the next likeliest."""
    with torch.inference_mode():
        whole = torch.tensor([[*prompt.ids, *ids]])
        logits = bot.model(input_ids=whole, image_features=prompt.features).logits[0, len(prompt.ids) - 1 : -1]
    best = logits.topk(2).values
    return best[:, 0] - best[:, 1]


def same_unless_near(bot: MiniChat, prompt: Prompt, found: list[int], wanted: list[int]) -> None:
    """Equal ids, up to the first that was nearly another."""
    near = margin(bot, prompt, wanted) < NEAR
    certain = int(near.int().argmax()) if near.any() else len(wanted)
    assert certain > 0
    assert found[:certain] == wanted[:certain]
    assert len(found) == len(wanted) or certain < len(wanted)


# --- together as alone


@pytest.mark.parametrize("heads", [2, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_together_is_alone(heads: int, attention: str) -> None:
    bot = tiny_bot(text={"num_key_value_heads": heads})
    bot.model.language_model.set_attn_implementation(attention)
    prompts = prompts_of(bot)
    lengths = [3, 8, 5, 12, 1, 7]
    requests = [request_of(bot, p, max_new_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
    for prompt, length, ids in zip(prompts, lengths, together(bot, requests, rows=4), strict=True):
        same_unless_near(bot, prompt, ids, alone(bot, prompt, max_new_tokens=length))


def test_the_logits_are_those_of_one_pass(bot: MiniChat) -> None:
    """Of every row at every step, whatever chunks the prompt was read in, and from whatever it was copied."""
    prompts = prompts_of(bot)
    for chunk, kept in ((512, 0), (7, 0), (1, 0), (512, 2**20), (5, 2**20)):
        engine = Engine(bot.model, chunk=chunk, kept_bytes=kept, rows=3)
        seen: dict[int, list[Tensor]] = {}
        forward = engine._forward

        def watch(requests: Any, embeds: Tensor, forward: Any = forward, seen: Any = seen) -> Tensor:
            logits: Tensor = forward(requests, embeds)
            for request, row in zip(requests, logits, strict=True):
                seen.setdefault(id(request), []).append(row.clone())
            return logits

        engine._forward = watch  # type: ignore
        for _ in range(2 if kept else 1):  # the second time what was read is known
            seen.clear()
            requests = [request_of(bot, prompt) for prompt in prompts]
            list(engine.run(requests))
            for prompt, request in zip(prompts, requests, strict=True):
                with torch.inference_mode():
                    ids = torch.tensor([[*prompt.ids, *request.ids[:-1]]])
                    whole = bot.model(input_ids=ids, image_features=prompt.features).logits[0]
                found = torch.stack(seen[id(request)][-len(request.ids) :])
                torch.testing.assert_close(found, whole[-len(request.ids) :], rtol=0, atol=1e-4)
        assert all(request.known > 0 for request in requests) == (kept > 0)


def test_sampled_rows_do_not_depend_on_their_company(bot: MiniChat) -> None:
    prompts = prompts_of(bot)
    ways: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "seed": 2, "top_p": 0.8},
        {"repetition_penalty": 1.3},
        {"temperature": 2.0, "seed": 4, "top_p": 0.95, "repetition_penalty": 1.2},
        {},
        {"temperature": 1.0, "seed": 1, "top_p": 0.3},
    ]
    wanted = [alone(bot, prompt, **way) for prompt, way in zip(prompts, ways, strict=True)]
    for rows in (1, 2, 6):
        requests = [request_of(bot, prompt, **way) for prompt, way in zip(prompts, ways, strict=True)]
        assert together(bot, requests, rows=rows) == wanted
    order = [3, 5, 0, 2, 4, 1]
    requests = [request_of(bot, prompts[i], **ways[i]) for i in order]
    assert together(bot, requests, rows=3) == [wanted[i] for i in order]


def test_the_sampler_chooses_as_one_row_does() -> None:
    torch.manual_seed(0)
    ways = [
        GenerationSettings(),
        GenerationSettings(temperature=0.5, seed=3),
        GenerationSettings(temperature=1, top_p=0.5, seed=4, repetition_penalty=2),
        GenerationSettings(repetition_penalty=0.5),
        GenerationSettings(temperature=1e-45, top_p=1e-9, seed=5),
    ]
    device = torch.device("cpu")
    written: list[list[int]] = [[7] for _ in ways]
    generators = [noise_generator(way, device) for way in ways]
    sampler = Sampler(ways, generators, [list(ids) for ids in written], 50, device, [3])
    single = [logits_processors(way, 1, device, [3]) for way in ways]
    for _ in range(20):
        logits = torch.randn(len(ways), 50) * 3
        logits[:, 3] = 100.0
        wanted = [
            int(process(torch.tensor([ids]), row[None].clone()).argmax())
            for process, ids, row in zip(single, written, logits, strict=True)
        ]
        assert sampler(logits).tolist() == wanted
        assert 3 not in wanted
        for ids, token in zip(written, wanted, strict=True):
            ids.append(token)


def test_whoever_joins_leaves_or_fails_changes_no_other_reply(bot: MiniChat) -> None:
    """200 random sequences: requests come at any step, some are dropped at any step."""
    prompts = prompts_of(bot)[:4]
    ways: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 11, "top_p": 0.9}]
    wanted = {
        (number, way): alone(bot, prompt, max_new_tokens=6, **ways[way])
        for number, prompt in enumerate(prompts)
        for way in range(2)
    }
    for seed in range(200):
        chance = random.Random(seed)
        kept = chance.choice([0, 20_000, 2**20])
        engine = Engine(bot.model, rows=chance.randint(1, 4), chunk=chance.choice([3, 16, 512]), kept_bytes=kept)
        asked: list[tuple[Request, tuple[int, int]]] = []
        to_come = chance.randint(2, 6)
        while to_come or engine._all:
            if to_come and chance.random() < 0.5:
                kind = (chance.randrange(len(prompts)), chance.randrange(2))
                asked.append((request_of(bot, prompts[kind[0]], max_new_tokens=6, **ways[kind[1]]), kind))
                engine.submit(asked[-1][0])
                to_come -= 1
            if chance.random() < 0.1 and asked:
                chance.choice(asked)[0].close()
            engine.step()
            assert engine.kept.nbytes <= kept
        for request, kind in asked:
            assert request.over
            if request._cut_short:
                assert request.ids == wanted[kind][: len(request.ids)]
            else:
                assert request.ids == wanted[kind]
        idle(engine)


# --- what is known is not read again


def test_what_was_read_is_not_read_again(bot: MiniChat) -> None:
    engine = Engine(bot.model, kept_bytes=2**22)
    first = request_of(bot, prompt_of(bot, ("What is it?", 1)))
    with counting(bot) as counts:
        list(engine.stream(first))
    assert counts["tokens"] == len(first.prompt.ids) + len(first.ids) - 1
    # The conversation comes back: of what the model has read or written, only the last id is not known.
    told = [*first.prompt.keys, *first.ids]
    again = Prompt([*first.prompt.ids, *first.ids, 5, 6], [*told, 5, 6], first.prompt.features)
    second = request_of(bot, again, max_new_tokens=1)
    with counting(bot) as counts:
        list(engine.stream(second))
    assert counts["tokens"] == 3
    assert second.ids == alone(bot, again, max_new_tokens=1)
    # Another picture in the same place: only what is before it is known.
    other = request_of(bot, prompt_of(bot, ("What is it?", 4)))
    list(engine.stream(other))
    assert other.known == other.prompt.keys.index("picture 4")
    assert other.ids == alone(bot, other.prompt)


def test_what_many_begin_with_is_read_once(bot: MiniChat) -> None:
    prompts = [prompt_of(bot, ("What is it?", 1), (text, 0)) for text in ("Is it red?", "Why?", "How large is it?")]
    common = shared(prompts[0].ids, prompts[1].ids)
    assert common > 30
    engine = Engine(bot.model, kept_bytes=2**22)
    with counting(bot) as counts:
        list(engine.run([request_of(bot, prompt, max_new_tokens=1) for prompt in prompts]))
    assert counts["tokens"] <= sum(len(prompt.ids) for prompt in prompts) - 2 * (common - 1)


def test_captions_without_end_leave_what_all_begin_with_and_nothing_else() -> None:
    bot = tiny_bot()
    chosen = GenerationSettings(max_new_tokens=4)

    def captions(numbers: range) -> list[Any]:
        return list(bot.captions((([noise_picture(n)], "What is it?", chosen) for n in numbers), 3))

    captions(range(2))
    kept = bot.engine.kept.nbytes
    assert kept > 0
    found = captions(range(2, 12))
    assert bot.engine.kept.nbytes == kept
    assert found == bot.caption([noise_picture(n) for n in range(2, 12)], "What is it?", max_new_tokens=4)


def test_kept_memory_is_bounded(bot: MiniChat) -> None:
    """Fifty conversations, the last of which are still known; the bound holds with and without a shared beginning."""
    limit = 200_000
    engine = Engine(bot.model, kept_bytes=limit)
    prompts = [prompt_of(bot, (f"How many stars are there? {number}", number + 1)) for number in range(50)]
    most = 0
    for prompt in prompts:
        list(engine.stream(request_of(bot, prompt, max_new_tokens=2)))
        most = max(most, engine.kept.nbytes)
    assert limit / 2 < most <= limit
    known = [engine.kept.longest(prompt.keys) for prompt in prompts]
    assert known[-1] >= len(prompts[-1].ids)
    assert known[0] == prompts[0].keys.index("picture 1")  # what all begin with is used again and again
    held = sum(tensor.nbytes for node in engine.kept._nodes() for pair in node.states for tensor in pair)
    storage = sum(
        tensor.untyped_storage().nbytes() for node in engine.kept._nodes() for pair in node.states for tensor in pair
    )
    assert held == storage == engine.kept.nbytes
    first = request_of(bot, prompts[0])  # rebuilt unseen
    list(engine.stream(first))
    assert first.ids == alone(bot, prompts[0])
    idle(engine)


def test_a_conversation_keeps_one_line_and_takes_it_along_when_it_ends() -> None:
    """Fifty chats that idle are within the bound; what one has left goes at once, and all of it when it is over."""
    bot = tiny_bot()
    kept = bot.engine.kept
    kept.limit = 150_000
    chats = [bot.chat(max_new_tokens=2) for _ in range(50)]
    for number, chat in enumerate(chats):
        chat.ask("What is it?", noise_picture(number))
        assert kept.nbytes <= kept.limit
    assert kept.nbytes > kept.limit / 2
    said = chats[0].regenerate()  # rebuilt unseen
    assert (
        said == bot.chat(conversation=Conversation(chats[0].conversation.messages[:1]), max_new_tokens=2).regenerate()
    )
    chats = chats[:1]
    del chat
    level = kept.nbytes
    for _ in range(3):
        chats[0].edit(0, "And what is this, please?")
        chats[0].edit(0, "What is it?")
    assert kept.nbytes <= level
    chats.clear()
    # What every chat begins with stays, and is not read again by the next.
    assert [node.keys for node in kept._nodes()] == [bot.beginning]
    assert len(bot.beginning) > 10
    with counting(bot) as counts:
        bot.chat(max_new_tokens=1).ask("What is it?")
    prompt = bot.processor.render(Conversation().user("What is it?"), add_generation_prompt=True)
    assert counts["tokens"] == len(prompt.ids) - len(bot.beginning)


def test_chats_at_once_say_what_they_say_alone() -> None:
    """Random questions, pictures, answers anew, edits and steps back, by several chats in turn, mid-reply, too."""
    bot, checking = tiny_bot(), tiny_bot()
    for seed in range(20):
        chance = random.Random(seed)
        bot.engine.kept.limit = chance.choice([0, 100_000, 2**24])
        chats = [bot.chat(max_new_tokens=5) for _ in range(3)]
        running: dict[int, Iterator[str]] = {}
        for _ in range(10):
            number = chance.randrange(3)
            chat, turns = chats[number], len(chats[number].conversation) // 2
            running.pop(number, None)
            act = chance.choice(["ask", "ask", "again", "edit", "undo"]) if turns else "ask"
            shown = [noise_picture(chance.randrange(3))] if chance.random() < 0.4 else None
            if act == "edit":
                chat.edit(chance.randrange(turns), "Is it large?", shown)
            elif act == "undo":
                chat.undo()
            else:
                running[number] = chat.stream("What is it?", shown) if act == "ask" else chat.stream_again()
                next(running[number], None)
        for number, pieces in running.items():
            list(pieces)
            messages = chats[number].conversation.messages
            fresh = checking.chat(conversation=Conversation(messages[:-1]), max_new_tokens=5)
            checking.engine.kept.clear()
            assert fresh.regenerate() == messages[-1].text
        running.clear()


def test_captions_of_unlike_lengths_take_the_steps_of_their_sum(bot: MiniChat) -> None:
    lengths = [2, 12, 3, 2, 12, 4, 2, 3]
    shown = [noise_picture(number) for number in range(8)]
    bot.engine.kept.clear()
    with counting(bot) as counts:
        found = bot.caption(shown, max_new_tokens=lengths, batch_size=2)
    assert counts["steps"] <= sum(lengths) / 2 + len(lengths) + 4  # in two rows, and a pass for each prompt
    alone = [bot.caption([one], max_new_tokens=n)[0] for one, n in zip(shown, lengths, strict=True)]
    assert found == alone
    with counting(bot) as counts:
        bot.caption([shown[0]] * 8, max_new_tokens=2)
    assert (counts["pictures"], counts["tokens"] < 20) == (0, True)  # what is known is neither looked at nor read again


def test_other_weights_know_nothing(bot: MiniChat) -> None:
    state = [0]
    engine = Engine(bot.model, kept_bytes=2**22, state=lambda: state[0])
    for number, known in ((0, False), (0, True), (1, False)):
        state[0] = number
        request = request_of(bot, prompt_of(bot, ("What is it?", 1)))
        list(engine.stream(request))
        assert (request.known > 0) == known


def test_a_prefix_tree_is_a_table_of_beginnings() -> None:
    """Against a plain list of all that was put in; every key's state is the key itself."""

    def states(keys: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [(torch.tensor(keys, dtype=torch.float32).reshape(1, -1, 1).repeat(2, 1, 3),) * 2]

    for seed in range(30):
        chance = random.Random(seed)
        tree, put = PrefixTree(10**6), [[0]]
        for _ in range(30):
            base = chance.choice(put)
            keys = base[: chance.randint(0, len(base))] + [chance.randrange(3) for _ in range(chance.randint(1, 6))]
            known = max(shared(keys, each) for each in put[1:]) if len(put) > 1 else 0
            assert tree.longest(keys) == known
            tree.insert(keys, lambda start, end, given=tuple(keys): states(list(given[start:end])))  # type: ignore[misc]
            put.append(keys)
            assert tree.longest(keys) == len(keys)
            found = torch.cat([piece[0][0] for piece in tree.find(keys)], 1)
            assert found[0, :, 0].tolist() == keys
        assert tree.nbytes == sum(node.nbytes for node in tree._nodes())
        tree.evict(tree.nbytes // 2)
        for keys in put[1:]:
            pieces = [piece[0][0] for piece in tree.find(keys)]
            assert sum(piece.shape[1] for piece in pieces) == tree.longest(keys)
            if pieces:
                assert torch.cat(pieces, 1)[0, :, 0].tolist() == keys[: tree.longest(keys)]
        tree.evict(0)
        assert (tree.nbytes, list(tree._nodes())) == (0, [])


def test_shared_beginnings_are_counted() -> None:
    pairs: list[tuple[list[int | str], list[int | str], int]] = [
        ([], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, "a", 3], [1, "a", 4], 2),
        ([5], [6], 0),
    ]
    for one, other, length in pairs:
        assert shared(one, other) == shared(other, one) == length
    long = list(range(1000))
    assert all(shared(long, [*long[:at], -1, *long[at + 1 :]]) == at for at in range(0, 1000, 37))


# --- ending, failing, waiting


def test_a_dropped_reply_is_gone_within_a_step(bot: MiniChat) -> None:
    engine, stop = Engine(bot.model, kept_bytes=0), threading.Event()
    dropped = request_of(bot, prompt_of(bot, ("What is it?", 1)), stop.is_set, max_new_tokens=100)
    other = request_of(bot, prompt_of(bot, ("Hi", 0)), max_new_tokens=100)
    waiting = request_of(bot, prompt_of(bot, ("Hi", 0)), stop.is_set)
    for request in (dropped, other, waiting):
        engine.submit(request)
    for _ in range(3):
        engine.step()
    assert len(engine._running) == 3
    stop.set()
    with counting(bot) as counts:
        engine.step()
    assert (counts["steps"], engine._running) == (1, [other])
    assert (dropped.over, waiting.over, len(dropped.ids), dropped.take()) == (True, True, 3, "")
    other.close()
    engine.step()
    idle(engine)


def test_an_iterator_that_is_closed_leaves_what_was_shown(bot: MiniChat) -> None:
    engine = Engine(bot.model, kept_bytes=2**20)
    ahead = request_of(bot, prompt_of(bot, ("Hi", 0)), max_new_tokens=40)
    pieces = engine.stream(ahead)
    shown = next(pieces)
    other = request_of(bot, prompt_of(bot, ("What is it?", 1)), max_new_tokens=20)
    list(engine.stream(other))  # brings the first forward, too
    assert len(ahead.ids) > 15
    shown += next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert ahead.reply.text == shown
    assert ahead.reply.generated == ahead.ids[: len(ahead.reply.generated)]
    assert other.reply.generated == other.ids
    idle(engine)


@pytest.mark.parametrize("where", ["prompt", "row"])
def test_an_error_ends_its_own_reply_alone(bot: MiniChat, where: str) -> None:
    """Found by trying one by one what failed together."""
    prompts = prompts_of(bot)
    engine = Engine(bot.model, kept_bytes=0)
    requests = [request_of(bot, prompt) for prompt in prompts]
    forward = engine._forward
    limit = len(prompts[1].ids) + (3 if where == "row" else -1)

    def fail(passed: Any, embeds: Tensor) -> Tensor:
        if any(each is requests[1] and each.length + embeds.shape[1] > limit for each in passed):
            raise RuntimeError("boom")
        result: Tensor = forward(passed, embeds)
        return result

    engine._forward = fail  # type: ignore
    list(engine.run(requests))
    assert str(requests[1].error) == "boom"
    assert len(requests[1].ids) == (4 if where == "row" else 0)
    for request, prompt in zip(requests, prompts, strict=True):
        if request is not requests[1]:
            assert request.error is None
            same_unless_near(bot, prompt, request.ids, alone(bot, prompt))
    idle(engine)
    if where == "prompt":
        requests[1] = request_of(bot, prompts[1])
        with pytest.raises(RuntimeError, match="boom"):
            list(engine.stream(requests[1]))


def test_memory_that_runs_out_is_taken_from_what_is_kept(bot: MiniChat) -> None:
    engine = Engine(bot.model, kept_bytes=2**22)
    prompt = prompt_of(bot, ("What is it?", 1))
    list(engine.stream(request_of(bot, prompt)))
    forward = engine._forward

    def fail(passed: Any, embeds: Tensor) -> Tensor:
        if engine.kept.nbytes:
            raise RuntimeError("CUDA error: out of memory")
        result: Tensor = forward(passed, embeds)
        return result

    engine._forward = fail  # type: ignore
    request = request_of(bot, prompt, max_new_tokens=1)
    list(engine.stream(request))
    assert (request.error, len(request.ids)) == (None, 1)


def test_who_wants_pieces_seldom_leaves_the_steps_to_others(bot: MiniChat) -> None:
    """The first piece comes at once, and threads change when something is handed out, not at each step."""
    engine = Engine(bot.model, kept_bytes=0)
    prompts = [prompt_of(bot, ("What is it?", 0)), prompt_of(bot, ("Hi", 0))] * 2
    requests = [request_of(bot, prompt, max_new_tokens=40) for prompt in prompts]
    stepping: list[int] = []
    step, together_now = engine.step, threading.Barrier(len(requests))

    def watched_step() -> None:
        stepping.append(threading.get_ident())
        step()

    def pieces(request: Request) -> list[str]:
        request.pace = lambda: 1e9
        together_now.wait(60)
        return list(engine.stream(request))

    engine.step = watched_step  # type: ignore
    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(pieces, requests))
    for request, prompt, came in zip(requests, prompts, found, strict=True):
        same_unless_near(bot, prompt, request.ids, alone(bot, prompt, max_new_tokens=40))
        assert len(came) <= 2 and "".join(came) == request.reply.text
    turns = sum(one != other for one, other in itertools.pairwise(stepping))
    assert turns < 2 * len(requests) < len(stepping)
    idle(engine)


def test_ctrl_c_in_a_step_leaves_the_others_whole(bot: MiniChat) -> None:
    prompts = prompts_of(bot)[:3]
    engine = Engine(bot.model, kept_bytes=2**20)
    requests = [request_of(bot, prompt) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    forward, passes = engine._forward, iter(range(100))

    def interrupt(passed: Any, embeds: Tensor) -> Tensor:
        result: Tensor = forward(passed, embeds)
        if next(passes) in (2, 6):
            raise KeyboardInterrupt
        return result

    engine._forward = interrupt  # type: ignore
    interrupts = 0
    while engine._all:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 2
    for request, prompt in zip(requests, prompts, strict=True):
        same_unless_near(bot, prompt, request.ids, alone(bot, prompt))
    idle(engine)


def test_ctrl_c_at_any_line_leaves_the_others_whole(bot: MiniChat) -> None:
    prompts = prompts_of(bot)[:2]
    wanted = [alone(bot, prompt, max_new_tokens=3) for prompt in prompts]
    for line in itertools.count(0, 9):
        engine = Engine(bot.model, kept_bytes=2**20)
        requests = [request_of(bot, prompt, max_new_tokens=3) for prompt in prompts]
        engine.submit(requests[0])
        interrupted = interrupted_at(line, lambda e=engine, r=requests[1]: list(e.stream(r)), Engine, "_begin_anew")
        with engine.step_lock:  # a place that was left behind is given back
            while engine._all:
                engine.step()
        assert (requests[0].over, requests[0].ids) == (True, wanted[0])
        assert requests[1].ids == wanted[1][: len(requests[1].ids)]
        idle(engine)
        if not interrupted:
            break
    assert line > 100


def test_a_nan_stays_in_its_row(bot: MiniChat) -> None:
    """What a mask hides is still multiplied, so what a row leaves behind must be a number."""
    engine = Engine(bot.model, kept_bytes=0, rows=2)
    good = prompt_of(bot, ("What is it?", 1))
    bad = Prompt(good.ids, good.keys, torch.full_like(good.features, torch.nan) if good.features is not None else None)
    short = prompt_of(bot, ("Hi", 0))
    requests = [
        request_of(bot, bad, max_new_tokens=3),
        request_of(bot, good, max_new_tokens=30),
        request_of(bot, short, max_new_tokens=20),
    ]
    list(engine.run(requests))
    same_unless_near(bot, short, requests[2].ids, alone(bot, short, max_new_tokens=20))


def test_first_come_first_served_and_a_long_prompt_stalls_nobody(bot: MiniChat) -> None:
    engine = Engine(bot.model, rows=2, chunk=16, kept_bytes=0)
    running = request_of(bot, prompt_of(bot, ("Hi", 0)), max_new_tokens=60)
    engine.submit(running)
    while not running.ids:
        engine.step()
    long = request_of(bot, prompt_of(bot, *[("Which is larger, the green one?", 0)] * 4))
    third = request_of(bot, prompt_of(bot, ("Hi", 0)))
    engine.submit(long)
    engine.submit(third)
    before = len(running.ids)
    with counting(bot) as counts:
        while not long.ids:
            tokens = counts["tokens"]
            engine.step()
            assert counts["tokens"] - tokens <= 16 + 1
    steps = -(-len(long.prompt.ids) // 16)
    assert before + steps - 1 <= len(running.ids) <= before + steps
    assert (third.ids, third.row) == ([], -1)
    while not long.over:
        engine.step()
    engine.step()
    assert third.row >= 0


def test_prompts_are_read_in_the_order_of_asking(bot: MiniChat) -> None:
    """Also the prompt of one that waited for what another was just reading."""
    engine = Engine(bot.model, chunk=16, kept_bytes=2**22)
    common, other = (prompt_of(bot, *[(text, 0)] * 4) for text in ("Is it left of the cat?", "Which one is green?"))
    list(engine.stream(request_of(bot, prompt_of(bot, ("Hi", 0)))))  # so that the template's text is known
    reader, waiting, last = (request_of(bot, prompt) for prompt in (common, common, other))
    for request in (reader, waiting, last):
        engine.submit(request)
    engine.step()
    assert waiting.row < 0 <= last.row
    while not waiting.ids:
        engine.step()
    assert reader.ids and not last.ids


def test_where_there_is_no_memory_for_another_row_it_waits(bot: MiniChat) -> None:
    engine = Engine(bot.model, kept_bytes=0)
    reserve = engine._pool.reserve

    def scarce(rows: int, slots: int) -> None:
        if rows > 1:
            raise MemoryError
        reserve(rows, slots)

    engine._pool.reserve = scarce  # type: ignore
    prompts = [prompt_of(bot, ("Hi", 0)), prompt_of(bot, ("What is it?", 1))]
    requests = [request_of(bot, prompt) for prompt in prompts]
    assert list(engine.run(requests)) == requests
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.error is None
        same_unless_near(bot, prompt, request.ids, alone(bot, prompt))


def test_many_threads_ask_one_engine(bot: MiniChat) -> None:
    prompts = prompts_of(bot)
    engine = Engine(bot.model, rows=4, kept_bytes=2**20)
    wanted = [alone(bot, prompt) for prompt in prompts]
    found: dict[int, tuple[str, Request]] = {}

    def ask(number: int) -> None:
        request = request_of(bot, prompts[number % len(prompts)])
        found[number] = ("".join(engine.stream(request)), request)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number, (text, request) in found.items():
        assert text == request.reply.text
        same_unless_near(bot, prompts[number % len(prompts)], request.ids, wanted[number % len(prompts)])
    assert len(found) == 12
    with counting(bot) as counts:
        list(engine.stream(request_of(bot, prompts[0])))
    assert counts["steps"] == len(wanted[0])
    idle(engine)


def test_one_wait_for_each_step(bot: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are fetched from the device once, for all rows."""
    engine = Engine(bot.model, kept_bytes=0)
    for prompt in prompts_of(bot):
        engine.submit(request_of(bot, prompt, temperature=1.0, top_p=0.9, repetition_penalty=1.1))
    fetched = []
    for name in ("tolist", "item", "__int__", "__bool__", "__float__", "cpu", "numpy", "nonzero"):
        original = getattr(Tensor, name)

        def fetch(self: Tensor, *args: Any, original: Any = original, name: str = name) -> Any:
            fetched.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, fetch)
    for _ in range(4):
        fetched.clear()
        engine.step()
        assert fetched == ["tolist"]


# --- the pool, and who cannot use it


def test_the_pool_grows_by_doubling_and_keeps_what_it_holds() -> None:
    pool, size = KeyValuePool(1), set()
    for length in range(200):
        pool.reserve(1 + length // 50, length + 1)
        pool.aim([0], torch.tensor([[length]]), length + 1)
        keys, values = pool.update(torch.full((1, 2, 1, 3), float(length)), torch.full((1, 2, 1, 5), -1.0), 0)
        assert keys[0, 0, :, 0].tolist() == list(range(length + 1))
        assert values.shape == (1, 2, length + 1, 5)
        size.add((pool.rows, pool.columns))
    assert size == {(1, 64), (2, 64), (2, 128), (4, 128), (4, 256)}
    assert pool.nbytes == 4 * 256 * 2 * (3 + 5) * 4


@pytest.mark.parametrize("heads", [2, 1])
def test_one_query_attends_as_many_do(heads: int) -> None:
    """In bfloat16, whose numbers have eight bits: a row's logits lie as near to float32's as those of one pass."""
    bot = tiny_bot(text={"num_key_value_heads": heads})
    prompt = prompt_of(bot, ("What is it?", 1))
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        exact = bot.model(input_ids=ids, image_features=prompt.features).logits[0, -1]
        llm = bot.model.language_model.to(torch.bfloat16)
        whole = bot.model(input_ids=ids, image_features=prompt.features).logits[0, -1].float()
        engine = Engine(bot.model, kept_bytes=0, chunk=len(prompt.ids) - 1)
        request = request_of(bot, prompt)
        engine.submit(request)
        engine._admit()
        assert engine._read() == []
        assert request.unread is not None
        (last,) = engine._forward([request], request.unread)  # the last token alone
    assert llm.config._attn_implementation == "sdpa"
    assert (last - exact).abs().mean() < 1.5 * (whole - exact).abs().mean()


def test_who_cannot_be_batched_says_so(bot: MiniChat) -> None:
    assert why_alone(bot.model) is None
    sliding = tiny_bot(text={"model_type": "mistral", "sliding_window": 16})
    assert why_alone(sliding.model) == "some of its layers do not keep the keys and values of all tokens"
    engine = Engine(sliding.model)
    assert engine.alone
    with pytest.raises(PromptError, match="cannot be written together"):
        engine.submit(request_of(sliding, prompt_of(sliding, ("Hi", 0))))
    learned = tiny_bot(text={"model_type": "gpt2", "n_embd": 40, "n_layer": 2, "n_head": 2, "n_positions": 512})
    assert why_alone(learned.model) == "its positions are not rotary"


def test_slots_without_a_picture_are_refused(bot: MiniChat) -> None:
    prompt = prompt_of(bot, ("What is it?", 1))
    with pytest.raises(PromptError, match="4 image slots and 0 pictures"):
        Engine(bot.model).submit(request_of(bot, Prompt(prompt.ids, prompt.keys, None)))


def test_stops_end_a_row(bot: MiniChat) -> None:
    """By its own stops, and without what was computed after them."""
    prompt = prompt_of(bot, ("Hi", 0))
    wanted = alone(bot, prompt, max_new_tokens=12)
    stops = Stops((), ((wanted[5],),))
    at = wanted.index(wanted[5])
    stopped = Request(prompt, GenerationSettings(max_new_tokens=12), bot.processor.content_tokenizer, stops)
    other = request_of(bot, prompt, max_new_tokens=12)
    assert together(bot, [stopped, other]) == [wanted[: at + 1], wanted]
    assert stopped.reply.finished


def test_a_picture_seen_before_is_not_encoded_again(bot: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a weight changes; a run over a folder keeps none."""
    encoded: list[int] = []
    see = bot.see
    monkeypatch.setattr(bot, "see", lambda sights: encoded.append(len(sights)) or see(sights))
    monkeypatch.setattr(bot, "sights", Sights(bot))
    shown = [noise_picture(n) for n in (70, 71, 70)]
    first = bot.caption(shown, max_new_tokens=4)
    assert bot.caption([*shown, noise_picture(72)], max_new_tokens=4)[:3] == first
    assert encoded == [2, 1]
    greedy = GenerationSettings(max_new_tokens=4)
    for _ in range(2):
        asked = [([one], bot.caption_prompt, greedy) for one in (*shown, noise_picture(73))]
        assert list(bot.captions(asked, 4))[:3] == first
    assert encoded == [2, 1, 1, 1]
    with torch.no_grad():
        next(bot.model.bridge.parameters()).mul_(1)
    bot.caption(shown[:1], max_new_tokens=4)
    assert encoded[4:] == [1]


def test_no_more_pictures_are_kept_than_fit(bot: MiniChat) -> None:
    names = [(f"{n}", (noise_picture(n), "")) for n in range(4)]
    size = bot.sight(noise_picture(0), "").nbytes
    sights = Sights(bot, limit=2 * size)
    found = sights.of(dict(names[:3]))
    assert len(found) == 3 and all(sight.features is None for sight in found.values())
    bot.look([found["1"]])
    features = found["1"].features
    assert features is not None and torch.equal(features, bot.encode([noise_picture(1)])[0])
    assert sights.of(dict(names), keep=False)["0"] is found["0"]  # as long as somebody has it
    del found
    again = sights.of(dict(names[1:]))
    assert again["1"].features is features
    del again
    assert list(sights._used) == ["2", "3"]


def test_a_picture_that_many_threads_show_is_encoded_once(bot: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    see = bot.see
    monkeypatch.setattr(bot, "see", lambda sights: encoded.append(len(sights)) or see(sights))
    sights = Sights(bot)

    def show(_: int) -> Sight:
        (sight,) = sights.of({"one": (noise_picture(74), "")}).values()
        bot.look([sight])
        return sight

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(show, range(8)))) == 1
    assert encoded == [1]


def test_where_one_reply_ends_the_next_begins(bot: MiniChat) -> None:
    """Also while the one that is to be handed out first is still being written."""
    engine, prompt = Engine(bot.model, kept_bytes=0), prompt_of(bot, ("What is it?", 0))
    drawn: list[Request] = []

    def asked() -> Iterator[Request]:
        for length in (40, 2, 2, 2):
            settings = GenerationSettings(max_new_tokens=length)
            drawn.append(Request(prompt, settings, bot.processor.content_tokenizer, Stops((), ())))  # nothing ends it
            yield drawn[-1]

    replies = engine.run(asked(), at_once=2)
    assert len(next(replies).ids) == 40
    assert [len(each.ids) for each in drawn[1:]] == [2, 2, 2]
    assert list(replies) == drawn[1:]
    idle(engine)


def test_what_was_read_ahead_is_not_read_again_and_goes_with_who_has_it(bot: MiniChat) -> None:
    picture = noise_picture(81)

    def asked() -> tuple[str, int]:
        with counting(bot) as counts:
            return bot.chat(max_new_tokens=6).ask("What is it?", [picture]), counts["tokens"]

    asked()  # the beginning of all prompts is known from now on
    said, read = asked()
    assert asked() == (said, read)
    ahead = bot.look_ahead(lambda: picture)
    assert ahead is not None
    again, less = asked()
    assert again == said and less <= read - bot.model.config.num_image_tokens
    del ahead
    assert asked() == (said, read)
    busy = request_of(bot, prompt_of(bot, ("Hi", 0)))
    bot.engine.submit(busy)
    assert bot.look_ahead(lambda: pytest.fail("to open it would be work, too")) is None  # somebody waits
    busy.close()
    list(bot.engine.run([]))
    bot.engine.forget(None)
    assert not bot.engine.waiting


# --- new pictures


def asking(bot: MiniChat, number: int, **changes: Any) -> Request:
    """A question about a picture that nobody has encoded yet."""
    known = prompt_of(bot, ("What is it?", number))
    prompt = Prompt(known.ids, known.keys, None, [bot.new_sight(noise_picture(number), "")])
    return request_of(bot, prompt, **changes)


def watched(bot: MiniChat, bad: Sequence[Request] = ()) -> tuple[Engine, list[int]]:
    """An engine, and how many pictures it encoded each time; those of `bad` requests cannot be."""
    counts: list[int] = []
    broken = [sight for request in bad for sight in request.prompt.sights]

    def see(sights: Sequence[Sight]) -> None:
        if any(sight in broken for sight in sights):
            raise RuntimeError("boom")
        counts.append(len(sights))
        bot.see(sights)

    return Engine(bot.model, kept_bytes=0, see=see), counts


def test_new_pictures_that_wait_are_encoded_together(bot: MiniChat) -> None:
    engine, counts = watched(bot)
    requests = [asking(bot, number) for number in range(1, 7)]
    list(engine.run(requests))
    assert counts == [4, 2]
    for number, request in enumerate(requests, start=1):
        prompt = prompt_of(bot, ("What is it?", number))
        features = request.prompt.seen()
        assert features is not None and prompt.features is not None
        assert torch.allclose(features, prompt.features, atol=1e-5)
        same_unless_near(bot, prompt, request.ids, alone(bot, prompt))
        assert request.prompt.sights[0].pixels is None  # which nobody needs any more
    idle(engine)


def test_many_pictures_of_one_question_are_encoded_a_few_at_a_time(bot: MiniChat) -> None:
    engine, counts = watched(bot)
    known = prompt_of(bot, *[("What is it?", number) for number in range(1, 7)])
    sights = [bot.new_sight(noise_picture(number), "") for number in range(1, 7)]
    request = request_of(bot, Prompt(known.ids, known.keys, None, sights))
    assert list(engine.run([request])) == [request]
    assert (request.error, counts) == (None, [4, 2])


def test_who_is_seen_first_has_words_before_the_next_are_encoded(bot: MiniChat) -> None:
    engine, counts = watched(bot)
    requests = [asking(bot, number) for number in range(1, 7)]
    for request in requests:
        engine.submit(request)
    engine.step()
    assert [len(request.ids) for request in requests] == [1, 1, 1, 1, 0, 0] and counts == [4]
    engine.step()  # they go on
    assert [len(request.ids) for request in requests] == [2, 2, 2, 2, 0, 0] and counts == [4]
    engine.step()
    assert [len(request.ids) for request in requests] == [2, 2, 2, 2, 1, 1] and counts == [4, 2]


def test_a_picture_that_cannot_be_encoded_ends_its_own_reply_alone(bot: MiniChat) -> None:
    requests = [asking(bot, number) for number in (1, 2, 3)]
    engine, _ = watched(bot, bad=requests[1:2])
    assert [str(request.error) for request in engine.run(requests)] == ["None", "boom", "None"]
    for number in (1, 3):
        prompt = prompt_of(bot, ("What is it?", number))
        same_unless_near(bot, prompt, requests[number - 1].ids, alone(bot, prompt))
    idle(engine)


def test_a_picture_that_nobody_wants_any_more_is_not_encoded(bot: MiniChat) -> None:
    engine, counts = watched(bot)
    requests = [asking(bot, number) for number in (1, 2)]
    for request in requests:
        engine.submit(request)
    requests[0].close()
    while not requests[1].over:
        engine.step()
    assert counts == [1] and requests[0].prompt.new
    idle(engine)


def test_a_picture_shown_twice_is_encoded_once(bot: MiniChat) -> None:
    engine, counts = watched(bot)
    first = asking(bot, 1)
    list(engine.run([first, request_of(bot, first.prompt)]))
    assert counts == [1]


def test_pictures_without_an_encoder_are_refused(bot: MiniChat) -> None:
    request = asking(bot, 1)
    list(Engine(bot.model).run([request]))
    assert isinstance(request.error, PromptError)
