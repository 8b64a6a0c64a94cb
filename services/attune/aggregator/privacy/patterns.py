"""Where a text holds personal data or secrets: patterns, each with its checksum or its library's check.

Every pattern is linear in the text, so that nobody's text can hold the aggregator up; an operator's own patterns run
under a time limit.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import regex
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn

Span = tuple[int, int]
"""The first character and the one after the last."""

NOTHING = (0, 0)
"""An empty span: a chance for the caller to look at the clock."""

Finder = Callable[[str], Iterator[Span]]

_DETECTORS = (
    AWSKeyDetector,
    AzureStorageKeyDetector,
    DiscordBotTokenDetector,
    GitHubTokenDetector,
    GitLabTokenDetector,
    MailchimpDetector,
    OpenAIDetector,
    PypiTokenDetector,
    SendGridDetector,
    SlackDetector,
    SquareOAuthDetector,
    StripeDetector,
    TelegramBotTokenDetector,
    TwilioKeyDetector,
)
# What detect-secrets does not know, knows by a part alone, or finds by patterns that a long text can hold up.
_MORE_KEYS = (
    re.compile(r"(?<![\w-])eyJ[\w=-]{6,}\.[\w=-]{6,}(?:\.[\w=-]*)?"),  # a JSON web token
    re.compile(r"(?<=://)[^\s:/?#@]{1,128}:[^\s:/?#@]{1,128}(?=@)"),
    re.compile(r"\bnpm_[A-Za-z0-9]{36}|(?<=:_authToken=)\S{8,128}"),
    re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END)[\s\S])*(?:-----END[A-Z -]{0,60})?"),
    re.compile(r"\b(?:sk|rk|pk)-[A-Za-z0-9][A-Za-z0-9_-]{19,}"),
    re.compile(r"\bak-[a-z0-9]{12}-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
)
_LOOKS_LIKE_A_KEY = re.compile(r"[A-Za-z0-9_\-+/=.:]{20}|-----BEGIN|://")  # _KEY_CHARACTERS

_MAIL = re.compile(r"(?<![\w.+-])[\w.+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}")
_CARD = re.compile(r"(?<![\w.,])(?:\d{13,19}|\d{4}(?:[ -]\d{3,7}){2,4})")
_LEAST_CARD_DIGITS = 13
_CARD_ISSUERS = "23456"
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{4,39}(?:%\w{1,16})?(?![\w:])")
_IP6_LEAST_GROUPS = 3
_IP6_LEAST_COLONS = 2
# Most texts have nothing of a kind, and a look for what it cannot be without is many times quicker than its pattern.
_DOTTED_DIGITS = re.compile(r"\d\.\d")
_KEY_CHARACTERS = 20
_NUMBERS = re.compile(r"[+(\d][\d\s().\-/\u2010-\u2013]{5,250}\d")
_LEAST_PHONE_DIGITS = 7
_DIGIT = re.compile(r"\d")
TRACES = {
    "key": r"[A-Za-z0-9_\-+/=.:]{20}|-----BEGIN|://",
    "mail": r"@",
    "iban": r"[A-Za-z]{2}\p{Nd}{2}[ -]?[A-Za-z0-9]",
    "card": r"\p{Nd}{13}|\p{Nd}{4}[ -]\p{Nd}{3}",
    "ip": r"\p{Nd}\.\p{Nd}{1,3}\.\p{Nd}|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:",
    "phone": r"[+(\p{Nd}][\p{Nd}\s\p{Z}\x0b\x1c-\x1f\x{85}().\-/\x{2010}-\x{2013}]{5}",
}
"""By kind, in RE2's dialect, what a text cannot be without: whole columns are looked through for that first."""

_OF_NUMBERS = frozenset({"card", "iban", "phone"})
_OF_DIGITS = _OF_NUMBERS | {"ip"}


def impossible(text: str) -> frozenset[str]:
    """Kinds of which there is nothing in the text, by a look that is quicker than theirs."""
    if _DIGIT.search(text):
        return frozenset()
    return _OF_DIGITS if text.count(":") < _IP6_LEAST_COLONS else _OF_NUMBERS


def mails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _MAIL.finditer(text))


def cards(text: str) -> Iterator[Span]:
    """13 to 19 digits of a known kind of issuer, with Luhn's check digit."""

    def is_card(piece: str) -> bool:
        digits = "".join(_DIGIT.findall(piece))
        return len(digits) >= _LEAST_CARD_DIGITS and digits[0] in _CARD_ISSUERS and luhn.is_valid(digits)

    return _in_groups(text, _CARD, is_card)


def ibans(text: str) -> Iterator[Span]:
    """Bank accounts, by their country's length and the remainder by 97."""
    return _in_groups(text, _IBAN, iban.is_valid)


def _in_groups(text: str, pattern: "re.Pattern[str]", is_one: Callable[[str], bool]) -> Iterator[Span]:
    """What is written in groups: the longest piece that is one, from the first group of it that is found.

    Other numbers or words may stand before and behind it with no more than a space between.
    """
    at = 0
    while match := pattern.search(text, at):
        yield NOTHING
        ends = [end for end in range(match.end(), match.start(), -1) if end == len(text) or not text[end].isalnum()]
        end = next((end for end in ends if is_one(text[match.start() : end])), None)
        if end is not None:
            yield match.start(), end
        at = end or _after_group(text, match.start())


def _after_group(text: str, at: int) -> int:
    while at < len(text) and text[at].isalnum():
        at += 1
    return at


def addresses(text: str) -> Iterator[Span]:
    """IP addresses but those of a machine itself."""
    patterns = [_IP4] if _DOTTED_DIGITS.search(text) else []
    if text.count(":") >= _IP6_LEAST_COLONS:
        patterns.append(_IP6)
    for pattern in patterns:
        for match in pattern.finditer(text):
            yield NOTHING
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.version == 6 and sum(map(bool, match[0].split(":"))) < _IP6_LEAST_GROUPS:
                continue
            if not (address.is_loopback or address.is_unspecified):
                yield match.span()


def phones(regions: Sequence[str]) -> Finder:
    """Numbers that exist: with + and a country anywhere, as they are written in one of these regions.

    Those without a country must be grouped: ten digits in a row are an order's as likely as a phone's.
    """

    def find(text: str) -> Iterator[Span]:
        for run in _NUMBERS.finditer(text):
            if len(_DIGIT.findall(run[0])) < _LEAST_PHONE_DIGITS:
                continue
            for region in (None, *regions):
                yield NOTHING
                grouping = Leniency.VALID if region is None else Leniency.STRICT_GROUPING
                for found in PhoneNumberMatcher(run[0], region, leniency=grouping):
                    if found.raw_string.startswith("+") or not found.raw_string.isdigit():
                        yield run.start() + found.start, run.start() + found.end

    return find


def keys(text: str) -> Iterator[Span]:
    """API keys, tokens, private keys and passwords within addresses, by their makers' formats."""
    if "://" not in text and "-----BEGIN" not in text and len(max(text.split(), key=len, default="")) < _KEY_CHARACTERS:
        return
    if not _LOOKS_LIKE_A_KEY.search(text):
        return
    for pattern in _key_patterns():
        yield from (match.span() for match in pattern.finditer(text))


@cache
def _key_patterns() -> tuple["re.Pattern[str]", ...]:
    return (*_MORE_KEYS, *(pattern for detector in _DETECTORS for pattern in detector.denylist))


class TooSlow(Exception):
    """A pattern did not come to its end in time."""


def own(pattern: str, seconds: float) -> Finder:
    """An operator's pattern (`regex`'s dialect); it raises TooSlow after the limit. Raises regex.error."""
    compiled = regex.compile(pattern)

    def find(text: str) -> Iterator[Span]:
        try:
            for match in compiled.finditer(text, timeout=seconds):
                if match.end() > match.start():
                    yield match.span()
        except TimeoutError:
            raise TooSlow from None

    return find
