"""The commands of a chat: a line that begins with `/`, and what it does."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import count, islice
from pathlib import Path

from ..checkpoint.adapter import adapter_key
from ..errors import LlvidError, UsageError, nearest
from ..runs.conversation_file import Conversation, write_conversation
from ..runs.session import SETTINGS
from ..validation import brief
from ..video import Frames
from ..video.files import is_pattern
from . import console
from .chat_session import Protocol, TerminalChat
from .frames import save, sheet_name
from .settings import check_text

_MOST_NAMES = 1000  # of a folder that completion reads
_SHEET_COLUMNS = 80  # characters, of a sheet in the terminal
_CHUNK = 4096  # characters of a picture in one escape sequence, the most that kitty's protocol allows
_PROGRAMS: dict[str, Protocol] = {"ghostty": "kitty", "WezTerm": "iterm", "iTerm.app": "iterm"}
_TERMS: dict[str, Protocol] = {"xterm-kitty": "kitty", "xterm-ghostty": "kitty"}


@dataclass(frozen=True)
class Command:
    """A command: `argument` is what follows its name, in brackets if it is optional."""

    name: str
    argument: str
    about: str
    run: Callable[[TerminalChat, str], None]


def take(chat: TerminalChat, line: str) -> bool:
    """Run the command or ask the question of a line. Return whether the chat continues.

    Raises LlvidError; the chat is unchanged then.
    """
    text = line.strip()
    if not text:
        return True
    if text in ("exit", "quit"):
        return False
    if not text.startswith("/") or text.startswith("//"):
        chat.put(text.removeprefix("/"))
        return True
    name, _, argument = text[1:].partition(" ")
    if name in ("exit", "quit"):
        return False
    command = next((each for each in COMMANDS if each.name == name), None)
    if command is None:
        names = [f"/{each.name}" for each in COMMANDS]
        hint = nearest(f"/{name}", names) or "/help lists the commands; type // to ask a question that begins with /"
        if name == "load":
            hint = "`llvid chat --load FILE` continues a conversation"
        raise UsageError(f"there is no command /{name}", hint)
    argument = argument.strip()
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument, got {brief(argument)}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} needs {command.argument}")
    command.run(chat, argument)
    return True


def completions(line: str) -> list[str]:
    """Return the completions of a line: commands, settings, and paths after commands that take one."""
    if not line.startswith("/"):
        return []
    name, space, prefix = line[1:].partition(" ")
    if not space:
        commands = [f"/{each.name}{' ' if each.argument else ''}" for each in COMMANDS]
        return [command for command in commands if command.startswith(line)]
    if name == "set":
        return [f"/set {setting} " for setting in SETTINGS if setting.startswith(prefix)]
    takes_path = any(each.name == name and "PATH" in each.argument for each in COMMANDS)
    return [f"/{name} {path}" for path in _paths(prefix)] if takes_path else []


def _paths(prefix: str) -> list[str]:
    folder, _, start = prefix.rpartition("/")
    folder += "/" * ("/" in prefix)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:  # noqa: PTH111 - `~/` stays as it is typed
            names = [
                f"{folder}{entry.name}{'/' if entry.is_dir() else ''}"
                for entry in islice(entries, _MOST_NAMES)
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
            ]
    except (OSError, ValueError):
        return []
    return sorted(names)


def _path(typed: str) -> str:
    """Return the path that was typed, or dropped on the terminal, which quotes it."""
    path = os.path.expanduser(typed)  # noqa: PTH111 - a path stays as it was written
    if not os.path.lexists(path):
        try:
            words = shlex.split(typed)
        except ValueError:
            return path
        if len(words) == 1 and (os.path.lexists(words[0]) or is_pattern(words[0])):
            return words[0]
    return path


def _add(chat: TerminalChat, typed: str) -> None:
    path = _path(typed)
    session = chat.session.add(path)
    kind = "video" if chat.media(session)[-1].is_video else "picture"
    chat.session = session
    chat.say(f"{path}: a {kind}, added to the next question")


def _frames(chat: TerminalChat, _: str) -> None:
    from ..video.contact_sheet import contact_sheet

    contents = dict(zip(chat.session.paths, chat.media(chat.session), strict=True))
    videos = {path: medium for path, medium in contents.items() if isinstance(medium, Frames)}
    if not videos:
        raise UsageError("there is no video in the conversation", "/video PATH adds one")
    for path, frames in videos.items():
        sheet = contact_sheet(frames)
        target = _free(f"{sheet_name(path)}-frames", chat.sheets)
        try:
            save(sheet, target)
        except LlvidError as error:
            raise LlvidError(str(error), "/frames writes into the folder that llvid was started in") from None
        chat.sheets.add(target)
        chat.say(f"{target}: {len(frames.times_seconds)} frames of {path}")
        if chat.pictures is not None:
            png = BytesIO()
            sheet.save(png, format="png")
            sys.stdout.write(terminal_picture(png.getvalue(), chat.pictures, _SHEET_COLUMNS))
            sys.stdout.flush()


def protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Return the terminal's protocol for pictures, by the variables that it sets; None in tmux and screen.

    Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment:
        return "kitty"
    program = environment.get("TERM_PROGRAM", "") or {"iTerm2": "iTerm.app"}.get(environment.get("LC_TERMINAL", ""), "")
    return _TERMS.get(term) or _PROGRAMS.get(program)


def terminal_picture(png: bytes, how: Protocol, columns: int) -> str:
    """Return the escape sequence that shows a picture, `columns` characters wide, and ends the line."""
    data = base64.b64encode(png).decode("ascii")
    if how == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{data}\a\n"
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # a=T: store and show; f=100: a PNG; q=2: no reply, which would arrive as typed text
    keys = [f"a=T,f=100,q=2,c={columns},", *[""] * (len(chunks) - 1)]
    pieces = [
        f"\x1b_G{key}m={int(number < len(chunks))};{chunk}\x1b\\"
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True), start=1)
    ]
    return "".join(pieces) + "\n"


def _free(stem: str, ours: set[Path]) -> Path:
    """Return a name that is free, or was used by this chat."""
    names = (Path(f"{stem}{'' if number == 1 else f'-{number}'}.png") for number in count(1))
    return next(path for path in names if path in ours or not os.path.lexists(path))


def _system(chat: TerminalChat, text: str) -> None:
    if text:
        check_text(text, "the system prompt")
        chat.session = replace(chat.session, system=None if text == "none" else text)
    chat.say(f"system: {chat.session.system or 'none'}")


def _set(chat: TerminalChat, argument: str) -> None:
    name, value = re.split(r"\s*=\s*|\s+|$", argument, maxsplit=1)
    if value.strip():
        chat.session = chat.session.set(name, value.strip())
    elif name and name not in SETTINGS:
        chat.session.set(name, "1")  # an error that names the nearest
    values = chat.session.settings()
    for key in (name,) if name in values else values:
        value = values[key]
        if isinstance(value, bool):
            value = "on" if value else "off"
        chat.say(f"{key} {'none' if value is None else value}")


def _undo(chat: TerminalChat, _: str) -> None:
    before, chat.session = chat.session, chat.session.undo()
    if len(chat.session.exchanges) == len(before.exchanges):
        chat.say(f"removed {before.waiting[-1]}")
        return
    last = before.exchanges[-1]
    media = f"; kept for the next question: {', '.join(last.paths)}" if last.paths else ""
    chat.say(f"removed {brief(last.question)}{media}")


def _save(chat: TerminalChat, typed: str, overwrite: bool = False) -> None:
    path = Path(_path(typed)) if typed else chat.file
    if path is None:
        raise UsageError("/save needs a PATH the first time")
    if not chat.session.drafts:
        raise UsageError("there is nothing to save yet")
    if path.exists() and path != chat.file and not overwrite:
        raise LlvidError(f"{path} exists", f"use /save! {path} to replace it")
    session, preset = chat.session, chat.settings.preset
    model = preset.model
    if model != "demo" and Path(model).is_dir():
        model = os.path.abspath(model)  # noqa: PTH100 - links in a path stay
    sampling, generation = (
        {key: value for key, value in values.items() if value is not None}
        for values in (session.sampling.values(), session.generation.values())
    )
    if "schema" in generation:
        generation["schema"] = json.loads(generation["schema"])
    adapter = adapter_key(preset.adapter)
    write_conversation(path, Conversation(session.drafts, model, preset.quantize, sampling, generation, adapter))
    chat.file = path
    chat.say(f"saved {path}")


def _clear(chat: TerminalChat, _: str) -> None:
    chat.session = chat.session.clear()
    chat.say("cleared; /video PATH adds a video")


def _help(chat: TerminalChat, _: str) -> None:
    rows = [(f"/{each.name} {each.argument}".rstrip(), each.about) for each in COMMANDS]
    width = max(len(usage) for usage, _ in rows) + 2
    for usage, about in rows:
        for line in console.columns(usage, about, width, wraps=console.stderr.is_terminal):
            chat.say(line)
    chat.say("Anything else is a question; type // to begin one with /. Ctrl-C stops an answer, Ctrl-D ends the chat.")


COMMANDS = (
    Command("video", "PATH", "add a video to the next question", _add),
    Command("image", "PATH", "add a picture to the next question", _add),
    Command("frames", "", "write a contact sheet of the frames that the model sees", _frames),
    Command("system", "[TEXT]", "show the system prompt, or set it; `none` removes it", _system),
    Command("set", "[NAME VALUE]", "show the settings, or change one: /set temperature 0.7", _set),
    Command("undo", "", "remove the last question and answer, or a video or picture added since", _undo),
    Command("retry", "", "ask the last question again; a sampled answer will differ", lambda chat, _: chat.retry()),
    Command("save", "[PATH]", "write the conversation to a .yaml or .json file", _save),
    Command("save!", "[PATH]", "the same, but replace an existing file", lambda chat, path: _save(chat, path, True)),
    Command("clear", "", "forget the conversation and its media", _clear),
    Command("help", "", "list the commands", _help),
    Command("exit", "", "end the chat", lambda *_: None),
)
