"""What the page's owner may do beside talking: keep replies to be learnt, teach them, and choose who answers."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, ImageChops, ImageStat
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from minichat import images
from minichat.data.check import check
from minichat.errors import DataError, ImageError, MiniChatError, PromptError
from minichat.fileio import disk_errors, json_line, locked, replace_file, to_disk
from minichat.teach.lessons import LEAST
from minichat.web.guard import DESK, Refusal, whole
from minichat.web.sessions import GONE, Limits, Sessions, Uploads
from minichat.web.swap import Models, Owned, Teaching
from minichat.web.talk import Said, Talk, data_url

# --- The set: `kept.jsonl`, in the form `messages` of docs/DATA.md, and its pictures, named by what they show.
#
# Every change is made under a lock and written as a whole: so two tabs, and two servers, lose nothing. Lines that
# somebody else wrote stay as they are.


SET, PICTURES, _LOCK = "kept.jsonl", "pictures", ".lock"
RECORDS = 5000  # of a set
BYTES = 2 * 2**30  # of its pictures
_NAME = 20  # letters of a picture's name, as a browser has it
_ALIKE = 6.0  # of 255, on average: a picture that was kept by a browser is not its original to the last bit
CHANGED = "This record was changed or deleted elsewhere: look at the list again."

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """A line of the set. `messages`: None where it cannot be read."""

    line: str
    messages: Messages | None

    @classmethod
    def of(cls, line: str) -> Record:
        try:
            messages = json.loads(line)["messages"]
            well = all({"role", "content"} <= message.keys() for message in messages)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            well = False
        return cls(line, messages if well else None)

    @property
    def id(self) -> str:
        return hashlib.sha256(self.line.encode("utf-8", "surrogatepass")).hexdigest()[:20]

    @property
    def asked(self) -> list[Any] | None:
        """What a person said and showed: of two records that have this in common, the later one counts."""
        return None if self.messages is None else [m for m in self.messages if m["role"] != "assistant"]


class KeptSet:
    """The records in a folder, which is made when it is first needed. All methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / SET
        self._one = threading.Lock()
        self._known: tuple[bytes, list[Record]] = b"", []  # the file's content, and what it holds

    def records(self) -> list[Record]:
        """All of them, the oldest first."""
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return []
        known, records = self._known
        if known != content:
            lines = content.decode("utf-8", "surrogateescape").split("\n")
            records = [Record.of(line) for line in lines if line.strip()]
            self._known = content, records
        return list(records)

    def keep(self, said: Sequence[Said], pictures: Mapping[str, Image.Image], system: str = "") -> int:
        """Add a conversation, or put it in the place of what was kept of the same questions; how many there are then.

        Raises:
            DataError: where the set is full, or the disk does not take it.
        """

        def change(records: list[Record]) -> list[Record]:
            files = {name: self._store(name, pictures[name]) for one in said for name in one.pictures}
            made = Record.of(json_line({"messages": _messages(said, files, system)}))
            alike = [place for place, one in enumerate(records) if one.asked == made.asked]
            if not alike and len(records) >= RECORDS:
                raise DataError(f"The set has {RECORDS:,} records, its most: begin another with --set.")
            if not alike:
                return [*records, made]
            return [made if place == alike[0] else one for place, one in enumerate(records) if place not in alike[1:]]

        return len(self._change(change))

    def drop(
        self, said: Sequence[Said], pictures: Mapping[str, Image.Image], system: str = "", longer: bool = False
    ) -> int:
        """Take out what says exactly this; `longer`: also what begins so. How many records there are then."""

        def change(records: list[Record]) -> list[Record]:
            files = {name: self._place(name, pictures[name]) for one in said for name in one.pictures}
            begin = _messages(said, files, system)
            end = len(begin) if longer else None
            return [one for one in records if (one.messages or [])[:end] != begin]

        return len(self._change(change)) if self.file.exists() else 0

    def edit(self, id: str, reply: int, text: str) -> None:
        """Change the words of a record's reply, counted from 0. Raises `DataError` where there is no such record."""

        def change(records: list[Record]) -> list[Record]:
            return [_edited(one, reply, text) if one.id == id else one for one in records]

        self._find(id)
        self._change(change)

    def delete(self, id: str, pictures: bool = True) -> None:
        """Take a record out; `pictures`: also those that no record shows any more."""
        self._find(id)
        left = self._change(lambda records: [one for one in records if one.id != id])
        if pictures:
            with self._locked():
                used = {part.get("image") for one in left for part in _shown(one)}
                for file in (self.folder / PICTURES).glob("*.png"):
                    if f"{PICTURES}/{file.name}" not in used:
                        file.unlink(missing_ok=True)

    def picture(self, id: str, number: int) -> Image.Image:
        """A picture of a record. Raises `DataError` or `ImageError` where there is none that can be opened."""
        shown = list(_shown(self._find(id)))
        if not 0 <= number < len(shown):
            raise DataError("The record has no such picture.")
        part = shown[number]
        if "base64" in part:
            return images.load(base64.b64decode(part["base64"].rpartition(",")[2]))
        return images.load(self.folder / str(part.get("image") or part.get("path")))

    def _find(self, id: str) -> Record:
        found = next((one for one in self.records() if one.id == id), None)
        if found is None:
            raise DataError(CHANGED)
        return found

    def _locked(self) -> Any:
        return locked(self.folder / _LOCK)

    def _change(self, change: Callable[[list[Record]], list[Record]]) -> list[Record]:
        with disk_errors(SET, DataError), self._one, self._locked():
            before = self.records()
            after = change(before)
            if after != before:
                text = "".join(f"{one.line}\n" for one in after)
                replace_file(self.file, text.encode("utf-8", "surrogateescape"))
                to_disk(self.folder)
            return after

    def _place(self, name: str, picture: Image.Image) -> str:
        """Where a picture is, or would be: under the name that a browser has for it, or else its own."""
        own = images.identity(picture)[:_NAME]
        for each in (name, own):
            file = self.folder / PICTURES / f"{each}.png"
            if file.exists() and _alike(file, picture):
                return file.relative_to(self.folder).as_posix()
        return f"{PICTURES}/{own}.png"

    def _store(self, name: str, picture: Image.Image) -> str:
        place = self._place(name, picture)
        file = self.folder / place
        if not file.exists() or not _alike(file, picture):
            written = io.BytesIO()
            picture.save(written, "PNG")
            file.parent.mkdir(exist_ok=True)
            held = sum(each.stat().st_size for each in file.parent.glob("*.png"))
            if held + written.tell() > BYTES:
                raise DataError(f"The set has {held / 2**30:.1f} GB of pictures, its most: begin another with --set.")
            replace_file(file, written.getvalue())
            to_disk(file.parent)
        return place


def _messages(said: Sequence[Said], files: Mapping[str, str], system: str) -> Messages:
    made = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    for one in said:
        shown = [{"type": "image", "image": files[name]} for name in one.pictures]
        words = [{"type": "text", "text": one.text}] if one.text else []
        made.append({"role": one.role, "content": [*shown, *words]})
    return made


def _shown(record: Record) -> Iterable[dict[str, Any]]:
    for message in record.messages or []:
        parts = message["content"] if isinstance(message["content"], list) else []
        yield from (part for part in parts if isinstance(part, dict) and part.get("type") == "image")


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)


def _edited(record: Record, reply: int, text: str) -> Record:
    replies = [one for one in record.messages or [] if one["role"] == "assistant"]
    if not 0 <= reply < len(replies):
        raise DataError(CHANGED)
    whole_line = json.loads(record.line)
    found = [one for one in whole_line["messages"] if one["role"] == "assistant"][reply]
    found["content"] = [{"type": "text", "text": text}]
    return Record.of(json_line(whole_line))


def _alike(file: Path, picture: Image.Image) -> bool:
    """Whether a file shows the picture, of which it may be a copy that lost a little."""
    try:
        held = images.load(file)
    except (ImageError, OSError):
        return False
    if held.size != picture.size:
        return False
    small = [each.convert("RGB").resize((32, 32), Image.Resampling.BOX) for each in (held, picture)]
    return max(ImageStat.Stat(ImageChops.difference(*small)).mean) <= _ALIKE


# --- Who the owner is: whoever sits at this machine, or has shown the key where there is one.


_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
NOT_YOURS = (
    "This is for the page's owner: open the page on the machine that serves it, or serve it behind a key "
    "(minichat serve --page with MINICHAT_API_KEY)."
)


def is_owner(scope: Scope, keyed: bool) -> bool:
    """Whether a request is the owner's. `keyed`: a door before this has asked for the key.

    Without a key it comes from loopback, by a name of loopback (another name may be that of somebody's page, which was
    made to point here), and through no proxy. Never from another page's script.
    """
    headers = Headers(scope=scope)
    host = urlsplit(f"//{headers.get('host', '')}")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host.netloc:
        return False
    if keyed:
        return True
    client = (scope.get("client") or ("", 0))[0]
    proxied = any(name in headers for name in _FORWARDED)
    return not proxied and _loopback(client) and (host.hostname == "localhost" or _loopback(host.hostname or ""))


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


# --- What the page asks for, as JSON: {"do": …, and what that needs}. An answer of an error is {"detail": sentence}.


_AT_ONCE = 50  # records that a page is shown
THUMBNAIL = 160  # pixels


class Desk:
    """Answers what the owner asks for behind the guard; to others it says only which model answers."""

    def __init__(
        self,
        owned: Owned | None,
        bot: Any,
        sessions: Sessions,
        uploads: Uploads,
        limits: Limits,
        knows: Mapping[str, str],
        boxes: Mapping[str, bool],
    ) -> None:
        """`owned`: None where the page has no owner.

        By the names of models, `knows` says what to tell of them, and `boxes` whether they were taught boxes.
        """
        self._sessions, self._uploads, self._limits, self._knows, self._boxes = sessions, uploads, limits, knows, boxes
        self._keyed = owned is not None and owned.keyed
        self.set = None if owned is None else KeptSet(owned.folder)
        if owned is not None:
            self.models, self.teaching = Models(owned, bot, sessions), Teaching(owned.folder)

    def close(self) -> None:
        """End what was started here."""
        if self.set is not None:
            self.teaching.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, visitor: str | None) -> None:
        owner = self.set is not None and visitor is not None and is_owner(scope, self._keyed)
        if scope["method"] != "POST":
            if not owner:
                raise Refusal(403, NOT_YOURS)
            await (await run_in_threadpool(self._thumbnail, scope["path"]))(scope, receive, send)
            return
        body = await whole(receive, 2**16 + 7 * self._limits.characters)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no valid JSON.") from None
        act = asked.get("do") if isinstance(asked, dict) else None
        if act == "choose" and visitor is not None:
            try:
                await run_in_threadpool(self._sessions.choose, visitor, str(asked.get("name")))
            except MiniChatError as error:
                raise Refusal(400, str(error)) from None
            act = "state"
        if act == "state" and not owner:
            await JSONResponse({"owner": False, **self._model(visitor or "")})(scope, receive, send)
            return
        if not owner:
            raise Refusal(403, NOT_YOURS)
        acts: dict[Any, Callable[[dict[str, Any], str], dict[str, Any]]] = {
            "state": lambda asked, visitor: {},
            "keep": self._keep,
            "drop": self._drop,
            "list": self._list,
            "edit": self._edit,
            "delete": self._delete,
            "check": self._check,
            "teach": self._teach,
            "stop": self._stop,
            "models": self._choices,
            "use": self._use,
        }
        if act not in acts:
            raise Refusal(400, f"do must be one of {', '.join(acts)}.")
        try:
            answer = await run_in_threadpool(acts[act], asked, visitor or "")
            answer |= await run_in_threadpool(self._state, visitor or "")
        except MiniChatError as error:
            raise Refusal(400, str(error)) from None
        await JSONResponse(answer)(scope, receive, send)

    def _model(self, visitor: str) -> dict[str, Any]:
        """What a page is told of the model that answers its visitor, and among which they may choose."""
        (new_chat, name), also = self._sessions.model_of(visitor), self._sessions.also
        bot = new_chat().bot
        return {
            "model": name,
            "choice": list(dict.fromkeys((self._sessions.name, *also))) if also else [],
            "knows": self._knows.get(name, ""),
            "caption": bot.caption_prompt,
            "system": bot.takes_system,
            "boxes": self._boxes.get(name, bot.names_boxes),
        }

    def _state(self, visitor: str) -> dict[str, Any]:
        kept, models = self._owned()
        records = kept.records()
        pictures = len({json.dumps(part, sort_keys=True) for one in records for part in _shown(one)})
        return {
            "owner": True,
            **self._model(visitor),
            "using": models.name,
            "loading": models.loading,
            "set": str(kept.file),
            "records": len(records),
            "pictures": pictures,
            "least": LEAST,
            "teaching": self.teaching.state(),
        }

    def _owned(self) -> tuple[KeptSet, Models]:
        if self.set is None:
            raise Refusal(403, NOT_YOURS)
        return self.set, self.models

    # --- the set

    def _keep(self, asked: dict[str, Any], visitor: str) -> dict[str, Any]:
        talk = self._talk(asked)
        said = self._said(talk, asked, bool(asked.get("whole")), learnt=True)
        self._owned()[0].keep(said, self._pictures(talk, visitor), talk.system)
        return {}

    def _drop(self, asked: dict[str, Any], visitor: str) -> dict[str, Any]:
        """Take out what a thumb kept; of a reply that is marked as wrong also conversations that hold it."""
        talk = self._talk(asked)
        wrong, pictures = asked["messages"][-1].get("mark") == "down", self._pictures(talk, visitor)
        for way in (True, False) if wrong else (False,):
            said = self._said(talk, asked, way, learnt=False)
            self._owned()[0].drop(said, pictures, talk.system, longer=wrong)
        return {}

    def _talk(self, asked: dict[str, Any]) -> Talk:
        talk = Talk.read(asked)
        if talk is None or not talk.messages or talk.messages[-1].role != "assistant":
            raise PromptError("There is no reply to keep.")
        if len(talk.pictures) > self._limits.pictures_per_chat:
            raise PromptError(f"A record may hold at most {self._limits.pictures_per_chat} pictures.")
        return talk

    def _said(self, talk: Talk, asked: dict[str, Any], whole: bool, learnt: bool) -> list[Said]:
        """The whole conversation, or the last question with all pictures before it and its reply; as corrected.

        Raises `PromptError` for what may not be learnt: a reply that is marked as wrong and not corrected, or empty.
        """
        said = []
        for number, (one, raw) in enumerate(zip(talk.messages, asked["messages"], strict=True)):
            right = raw.get("right") or ""
            if not isinstance(right, str) or len(right) > self._limits.characters:
                raise PromptError(f"The right reply must be a text of at most {self._limits.characters} characters.")
            if one.role == "assistant":
                of_record = learnt and (whole or number == len(talk.messages) - 1)
                if of_record and raw.get("mark") == "down" and not right.strip():
                    raise PromptError("A reply that is marked as wrong is not kept: write the right one first.")
                one = replace(one, text=(right or one.text).strip())
                if of_record and not one.text:
                    raise PromptError("The reply is empty: there is nothing to learn of it.")
            said.append(one)
        return said if whole else [replace(said[-2], pictures=tuple(talk.pictures)), said[-1]]

    def _pictures(self, talk: Talk, visitor: str) -> dict[str, Image.Image]:
        pictures = self._sessions.pictures_of(visitor)
        for name, path in (talk.files or {}).items():
            if not self._uploads.owns(path, visitor):
                raise ImageError(GONE)
            if name not in pictures:
                pictures[name] = self._uploads.open(path, visitor)
            self._uploads.release(path, visitor)
        if not all(name in pictures for name in talk.pictures):
            raise ImageError("A picture of this conversation is no longer here: reload the page, which has it.")
        return pictures

    def _list(self, asked: dict[str, Any], _: str) -> dict[str, Any]:
        """Records, the newest first, after so many."""
        after = asked.get("after")
        after = after if isinstance(after, int) and after >= 0 else 0
        newest = self._owned()[0].records()[::-1]
        return {
            "list": [_listed(one) for one in newest[after : after + _AT_ONCE]],
            "more": len(newest) > after + _AT_ONCE,
        }

    def _edit(self, asked: dict[str, Any], _: str) -> dict[str, Any]:
        text, reply = asked.get("text"), asked.get("reply")
        if not isinstance(text, str) or not text.strip() or len(text) > self._limits.characters:
            raise PromptError(f"A reply must have 1 to {self._limits.characters} characters.")
        if isinstance(reply, bool) or not isinstance(reply, int):
            raise PromptError("reply must be a reply's number.")
        self._owned()[0].edit(str(asked.get("id")), reply, text.strip())
        return {}

    def _delete(self, asked: dict[str, Any], _: str) -> dict[str, Any]:
        # What is learnt from now reads its pictures until its end.
        self._owned()[0].delete(str(asked.get("id")), pictures=not self.teaching.running())
        return {}

    def _check(self, _: dict[str, Any], __: str) -> dict[str, Any]:
        kept, models = self._owned()
        if not kept.records():
            return {"checked": "There is nothing in the set yet."}
        problems: list[str] = []
        how = {name: getattr(models.bot, name, None) for name in ("processor", "context")}
        report = check(str(kept.file), found=lambda problem: problems.append(str(problem)), **how)
        return {"checked": "\n".join([*problems[:_AT_ONCE], report.summary()])}

    def _thumbnail(self, path: str) -> Response:
        _, id, number = path.removeprefix(DESK).split("/")
        try:
            shown = data_url(self._owned()[0].picture(id, int(number)), THUMBNAIL)
        except (MiniChatError, ValueError):
            raise Refusal(404, "There is no such picture here.") from None
        head, _, data = shown.partition(",")
        kind = head.removeprefix("data:").removesuffix(";base64")
        return Response(base64.b64decode(data), media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    # --- teaching, and which model answers

    def _teach(self, _: dict[str, Any], __: str) -> dict[str, Any]:
        kept, models = self._owned()
        if not kept.records():
            raise DataError("There is nothing in the set yet: keep replies first.")
        device = getattr(models.bot, "device", None)
        self.teaching.start(kept.file, models.name, getattr(device, "type", "auto"))
        return {}

    def _stop(self, _: dict[str, Any], __: str) -> dict[str, Any]:
        self.teaching.stop()
        return {}

    def _choices(self, _: dict[str, Any], __: str) -> dict[str, Any]:
        return {"models": self._owned()[1].choices()}

    def _use(self, asked: dict[str, Any], _: str) -> dict[str, Any]:
        self._owned()[1].use(str(asked.get("name")))
        return {}


def _listed(record: Record) -> dict[str, Any]:
    if record.messages is None:
        return {"id": record.id, "broken": record.line[:200]}
    shown, messages = 0, []
    for message in record.messages:
        content = message["content"] if isinstance(message["content"], list) else []
        count = sum(isinstance(part, dict) and part.get("type") == "image" for part in content)
        messages.append(
            {"role": message["role"], "text": _text(message), "pictures": list(range(shown, shown + count))}
        )
        shown += count
    return {"id": record.id, "messages": messages}
