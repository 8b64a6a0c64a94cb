"""`attune chat`: a conversation in the terminal."""

import contextlib
import getpass
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape

from attune.cli.receipts import receipt_lines
from attune.client import Client, Response
from attune.client.errors import Cancelled
from attune.client.place import Place
from attune.client.receipts import Receipt, Receipts
from attune.errors import AttuneError, InvalidInput

_TIMEOUT_SECONDS = 600
_HELP = {
    "/up [why]": "a thumb up for the last answer",
    "/down [why]": "a thumb down for the last answer",
    "/correct TEXT": "what the last answer should have said",
    "/retry": "another answer to the same",
    "/why": "which policy answered, and what became of your last feedback",
    "/new": "begin a new conversation",
    "/persona NAME": "talk to somebody else",
    "/help": "this",
    "/quit": "leave (or Ctrl-D); Ctrl-C stops an answer",
}
# What a model writes must not steer the terminal: all control characters but line feed and tab.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x0A, 0x09})


def run(server: Place, persona: str, end_user: str, desk: Callable[[], Receipts]) -> None:
    """Until the input ends or says /quit. Without a terminal the first error ends it."""
    console = Console(highlight=False, soft_wrap=True)
    interactive = sys.stdin.isatty() and console.is_terminal
    with server.client(timeout_seconds=_TIMEOUT_SECONDS) as client:
        talk = Talk(client, console, persona, end_user or _login_name(), desk)
        if interactive:
            console.print(f"[bold]attune[/] [dim]{server.address} · /up and /down say what you think · /help[/]\n")
        for line in _typed(console) if interactive else sys.stdin:
            try:
                if not talk.take(line.strip()):
                    break
            except AttuneError as error:
                if not interactive:
                    raise
                console.print(f"[red]{escape(_plain(error.message))}[/]\n")


class Talk:
    """One person's conversation with one persona at a time."""

    def __init__(
        self, client: Client, console: Console, persona: str, end_user: str, desk: Callable[[], Receipts]
    ) -> None:
        self._client = client
        self._console = console
        self._persona = persona
        self._end_user = end_user
        self._desk = desk
        self._policy_id = ""
        self._said: tuple[Response, str] | None = None
        self._begin()

    def _begin(self) -> None:
        self._messages: list[dict[str, str]] = []
        self._conversation_id = ""
        self._last: Response | None = None

    def take(self, line: str) -> bool:
        """Answers a line, or does what a command says; False when it says to leave."""
        command, _, rest = line.partition(" ")
        if not line:
            return True
        if not line.startswith("/"):
            self._answer(line)
        elif command == "/quit":
            return False
        elif command in {"/up", "/down"}:
            self._vote(command, rest.strip())
        elif command == "/correct":
            self._correct(rest.strip())
        elif command == "/retry":
            self._retry()
        elif command == "/why":
            self._why()
        elif command == "/new":
            self._begin()
            self._note("a new conversation")
        elif command == "/persona":
            self._turn_to(rest.strip())
        elif command == "/help":
            for name, meaning in _HELP.items():
                self._console.print(f"  {escape(name)}{' ' * (15 - len(name))}[dim]{meaning}[/]")
            self._console.print()
        else:
            raise InvalidInput(f"there is no {command}; /help lists what there is")
        return True

    def _answer(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        began = time.monotonic()
        with self._client.stream(
            messages, persona=self._persona, conversation_id=self._conversation_id, end_user_id=self._end_user
        ) as stream:
            opened = False
            try:
                for piece in stream:
                    if not opened:
                        self._open(stream.policy_id)
                        opened = True
                    self._console.out(_plain(piece), end="", highlight=False)
                response = stream.response
            except (KeyboardInterrupt, Cancelled):
                stream.cancel()
                self._note("\nstopped; what was said of it is not kept" if opened else "stopped")
                return
            except AttuneError:
                if opened:
                    self._console.print()
                raise
        if not opened:
            self._open(response.policy_id)
        self._console.print()
        self._messages = [*messages, {"role": "assistant", "content": response.text}]
        self._conversation_id = response.conversation_id
        self._last = response
        cut = ", cut at its longest" if response.finish_reason == "length" else ""
        self._note(
            f"{response.policy_id} · {response.usage.output_tokens} tokens{cut} · {time.monotonic() - began:.2f} s"
        )

    def _open(self, policy_id: str) -> None:
        if self._policy_id not in {"", policy_id}:
            self._console.print(f"[dim]now answering: [/][green]{policy_id}[/]")
        self._policy_id = policy_id
        if self._console.is_terminal:
            self._console.print(f"[bold magenta]{self._persona or 'answer'}[/] [dim]›[/] ", end="")

    def _vote(self, command: str, comment: str) -> None:
        if self._last is None:
            raise InvalidInput("there is no answer to vote on yet")
        vote = self._last.up if command == "/up" else self._last.down
        self._said = self._last, vote(comment)
        self._note(f"noted: thumb {command[1:]}{' with your comment' if comment else ''}")

    def _correct(self, text: str) -> None:
        if self._last is None:
            raise InvalidInput("there is no answer to correct yet")
        if not text:
            raise InvalidInput("/correct wants a text: what the last answer should have said")
        self._said = self._last, self._last.correct(text)
        self._note("noted: what it should have said")

    def _retry(self) -> None:
        if self._last is None:
            raise InvalidInput("there is no answer to try again yet")
        self._last.implicit("regenerated")
        asked = self._messages[-2]["content"]
        self._messages = self._messages[:-2]
        self._answer(asked)

    def _why(self) -> None:
        """The feedback token is enough to ask, whatever the key is for."""
        if self._last is None:
            raise InvalidInput("there is no answer yet")
        self._note(f"{self._last.policy_id} answered, {self._last.response_id}")
        if self._said is None:
            self._note("you have said nothing of an answer yet: /up, /down, /correct")
            return
        response, feedback_id = self._said
        with self._desk() as desk:
            known = {one.feedback_id: one for one in desk.ask(feedback_token=response.feedback_token)}
        for line in receipt_lines(known.get(feedback_id, Receipt.not_stored(feedback_id))):
            self._console.print(line)
        self._console.print()

    def _turn_to(self, persona: str) -> None:
        if not persona:
            raise InvalidInput("say whom: /persona NAME")
        self._persona = persona
        self._policy_id = ""
        self._begin()
        self._note(f"a new conversation, with {_plain(persona)}")

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)
        if self._console.is_terminal:
            self._console.print()


def _typed(console: Console) -> Iterator[str]:
    """Lines from the keyboard, with editing and history; Ctrl-C empties the line, Ctrl-D ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines once it is imported
    # Readline counts what is between \001 and \002 as no columns.
    prompt = "you › " if console.no_color else "\001\x1b[1;36m\002you\001\x1b[0;2m\002 › \001\x1b[0m\002"
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            console.print("[dim]  (/quit or Ctrl-D leaves)[/]")
        except EOFError:
            console.print()
            return


def _plain(text: str) -> str:
    return text.translate(_CONTROLS)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
