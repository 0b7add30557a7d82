"""C++: an answer and its tests as two programs, compiled apart, between which only plain values cross.

Neither program has a symbol, a macro or a byte of the other. The tests call a function of the prompt's types, which sends its
arguments over descriptor 3; the answer's program decodes them into the types of the answer's own function, calls it, and
sends the result back. A number that is not one (NaN) is not a result: it would meet every test that asks for a small
difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_GONE_EXIT = 95  # what the tests end with when the answer's program has ended before them

# Before the program. The templates name no container, so that no header is needed beyond those that are there.
_WIRE = r"""
namespace qtk_wire {
static FILE *incoming, *outgoing;
static void opened() { incoming = fdopen(3, "r"); outgoing = fdopen(3, "w"); }
static void gone() { _Exit(GONE); }
static void send(const void* data, size_t size) { if (size && fwrite(data, 1, size, outgoing) != size) gone(); }
static void receive(void* data, size_t size) { if (size && fread(data, 1, size, incoming) != size) gone(); }
static void send_size(size_t size) { unsigned int word = size; send(&word, sizeof word); }
static size_t receive_size() {
    unsigned int word = 0;
    receive(&word, sizeof word);
    if (word > 1u << 26) gone();
    return word;
}
template<class... T> struct always { typedef void type; };
template<class T, class = void> struct Value;
template<class T> struct Value<T, typename std::enable_if<std::is_arithmetic<T>::value>::type> {
    static void give(T value) {
        char kind = std::is_floating_point<T>::value ? 'd' : 'i';
        long double real = value;
        long long whole = std::is_floating_point<T>::value ? 0 : (long long)value;
        send(&kind, 1);
        if (kind == 'd') send(&real, sizeof real); else send(&whole, sizeof whole);
    }
    static T take() {
        char kind = 0;
        long double real = 0;
        long long whole = 0;
        receive(&kind, 1);
        if (kind == 'd') { receive(&real, sizeof real); if (STRICT && real != real) gone(); return (T)real; }
        if (kind != 'i') gone();
        receive(&whole, sizeof whole);
        return (T)whole;
    }
};
template<class C, class A, class B> struct Value<std::basic_string<C, A, B>, void> {
    static void give(const std::basic_string<C, A, B>& value) {
        send_size(value.size());
        send(value.data(), value.size() * sizeof(C));
    }
    static std::basic_string<C, A, B> take() {
        std::basic_string<C, A, B> value(receive_size(), C());
        receive(&value[0], value.size() * sizeof(C));
        return value;
    }
};
template<class A, class B> struct Value<std::pair<A, B>, void> {
    static void give(const std::pair<A, B>& value) {
        Value<typename std::decay<A>::type>::give(value.first);
        Value<typename std::decay<B>::type>::give(value.second);
    }
    static std::pair<A, B> take() {
        A first = Value<typename std::remove_cv<A>::type>::take();
        return std::pair<A, B>(first, Value<B>::take());
    }
};
template<class T>
struct Value<T, typename always<typename T::value_type, decltype(((T*)0)->emplace_back(*(typename T::value_type*)0))>::type> {
    static void give(const T& value) {
        send_size(value.size());
        for (auto&& item : value) Value<typename T::value_type>::give(item);
    }
    static T take() {
        T value;
        for (size_t left = receive_size(); left > 0; --left) value.push_back(Value<typename T::value_type>::take());
        return value;
    }
};
template<class T>
struct Value<T, typename always<typename T::key_type, decltype(((T*)0)->insert(*(typename T::value_type*)0))>::type> {
    static void give(const T& value) {
        send_size(value.size());
        for (auto&& item : value) Value<typename T::value_type>::give(item);
    }
    static T take() {
        T value;
        for (size_t left = receive_size(); left > 0; --left) value.insert(Value<typename T::value_type>::take());
        return value;
    }
};
"""
_TUPLE = r"""
template<class... T> struct Value<std::tuple<T...>, void> {
    static void give(const std::tuple<T...>& value) {
        std::apply([](const T&... item) { (Value<T>::give(item), ...); }, value);
    }
    static std::tuple<T...> take() { return std::tuple<T...>{Value<T>::take()...}; }
};
"""
_OPTIONAL = r"""
template<class T> struct Value<std::optional<T>, void> {
    static void give(const std::optional<T>& value) { send_size(value.has_value()); if (value) Value<T>::give(*value); }
    static std::optional<T> take() { if (!receive_size()) return std::nullopt; return Value<T>::take(); }
};
"""
# The types that the tests of the suites put into an `any`.
_ANY = r"""
template<> struct Value<NAMESPACE::any, void> {
    template<class T> static bool given(char kind, const NAMESPACE::any& value) {
        if (value.type() != typeid(T)) return false;
        send(&kind, 1);
        Value<T>::give(NAMESPACE::any_cast<T>(value));
        return true;
    }
    static void give(const NAMESPACE::any& value) {
        if (given<int>('i', value) || given<long>('l', value) || given<long long>('q', value)
            || given<double>('d', value) || given<float>('f', value) || given<bool>('b', value)
            || given<char>('c', value) || given<std::string>('s', value) || given<std::vector<int>>('v', value)
            || given<std::vector<long>>('w', value) || given<std::vector<NAMESPACE::any>>('a', value)) return;
        const bool text = value.type() == typeid(const char*);
        const char kind = text ? 't' : '-';
        send(&kind, 1);
        if (text) Value<std::string>::give(NAMESPACE::any_cast<const char*>(value));
    }
    static NAMESPACE::any take() {
        char kind = 0;
        receive(&kind, 1);
        switch (kind) {
            case 'i': return Value<int>::take();
            case 'l': return Value<long>::take();
            case 'q': return Value<long long>::take();
            case 'd': return Value<double>::take();
            case 'f': return Value<float>::take();
            case 'b': return Value<bool>::take();
            case 'c': return Value<char>::take();
            case 's': return Value<std::string>::take();
            case 't': return (const char*)(new std::string(Value<std::string>::take()))->c_str();
            case 'v': return Value<std::vector<int>>::take();
            case 'w': return Value<std::vector<long>>::take();
            case 'a': return Value<std::vector<NAMESPACE::any>>::take();
        }
        return NAMESPACE::any();
    }
};
"""
# Behind the answer. Descriptor 3 is closed at the other end when the tests have ended; then this program ends as it would.
_SERVING = """
int main() {{
    qtk_wire::opened();
    for (int qtk_more = getc(qtk_wire::incoming); qtk_more == '?'; qtk_more = getc(qtk_wire::incoming)) {{
{taken}
        {result} qtk_result = ::{entry}({given});
        qtk_wire::Value<std::decay<{result}>::type>::give(qtk_result);
        fflush(qtk_wire::outgoing);
    }}
    return 0;
}}
"""
_ASKING = """
{result} {entry}({parameters}) {{
    putc('?', qtk_wire::outgoing);
{given}
    fflush(qtk_wire::outgoing);
    return qtk_wire::Value<std::decay<{result}>::type>::take();
}}
"""
# The word that says how the tests ended comes on standard input, so that no file holds it.
_TESTS_MAIN = """
int main() {{
    qtk_wire::opened();
    {tests}();
    fflush(stdout);
    for (int letter = getchar(); letter != EOF; letter = getchar()) putchar(letter);
    return 0;
}}
"""


@dataclass(frozen=True)
class Signature:
    """A function's header: the type of its result, its parameters as they are written, and the name and type of each."""

    result: str
    parameters: str
    names: tuple[str, ...]
    types: tuple[str, ...]

    @staticmethod
    def of(header: str, entry: str) -> Signature | None:
        """Of the text of a function from its beginning to its brace; None where it cannot be read."""
        pattern = rf"^(.*?[\s&*>]){re.escape(entry)}\s*\((.*)\)\s*(?:const\s*)?\{{$"
        found = re.search(pattern, header.strip(), re.DOTALL)
        if found is None:
            return None
        parts = [re.sub(r"\s*=.*$", "", part.strip(), flags=re.DOTALL) for part in divided(found.group(2))]
        named = [re.fullmatch(r"(.*[\s&>])(\w+)", part, re.DOTALL) for part in parts]
        if not all(named):
            return None
        pairs = [(match.group(2), match.group(1).strip()) for match in named if match]
        return Signature(
            found.group(1).strip(), found.group(2), tuple(name for name, _ in pairs), tuple(kind for _, kind in pairs)
        )

    @property
    def crosses(self) -> bool:
        """Whether its values can cross: not pointers, not arguments that the function may change, not unions."""
        words = f"{self.result} {self.parameters}"
        changed = any("&" in kind and not kind.startswith("const") for kind in self.types)
        return not changed and not re.search(r"\*|\[|\bUnion_|\bvoid\b|\bauto\b|\btemplate\b", words)

    def crosses_as(self, other: Signature) -> bool:
        """Whether a function with this signature can stand for one with the other's."""
        readable = not re.search(r"\*|\[|\bauto\b|&&|\btemplate\b", " ".join(self.types))
        return readable and len(self.names) == len(other.names)


def divided(parameters: str) -> list[str]:
    """The items between commas; a comma between brackets, or in a string, divides nothing."""
    parts, depth, quote, escaped = [""], 0, "", False
    for character in parameters:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "<({[") - (character in ">)}]")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def wire(head: str, signature: Signature, *, strict: bool) -> str:
    """What a program needs to send and receive the values of a signature. head: the prompt's includes. strict: the tests' side."""
    words = f"{signature.result} {signature.parameters}"
    text = _WIRE.replace("GONE", str(_GONE_EXIT if strict else 0)).replace("STRICT", "true" if strict else "false")
    includes = ""
    if "std::optional<" in words:
        text += _OPTIONAL
    if "tuple<" in words:
        text += _TUPLE
    for library, header in (("boost", "boost/any.hpp"), ("std", "any")):
        if re.search(rf"\b{library}::any\b", words + head):
            text += _ANY.replace("NAMESPACE", library)
            includes = f"#include <{header}>\n"
    return f"{includes}{text}}}\n"


def answer_program(
    head: str, solution: str, signature: Signature, own: Signature, entry: str, moved: tuple[bool, ...]
) -> str:
    """The answer's program. signature: the prompt's. own: that of the answer's function. moved: which arguments are values
    that no variable of the tests holds."""
    taken = "\n".join(
        f"        auto {name}_qtk = qtk_wire::Value<std::decay<{kind}>::type>::take();"
        for name, kind in zip(own.names, own.types, strict=True)
    )
    given = ", ".join(
        f"std::move({name}_qtk)" if move else f"{name}_qtk" for name, move in zip(own.names, moved, strict=True)
    )
    serving = _SERVING.format(taken=taken, given=given, result=signature.result, entry=entry)
    return f"{wire(head, signature, strict=False)}#line 1\n{solution}\n{serving}"


def tests_program(before: str, head: str, helpers: str, tests: str, signature: Signature, entry: str) -> str:
    """The tests' program. before: directives and headers. helpers: what the prompt defines besides. tests: with their main
    called `qtk_tests`."""
    given = "\n".join(
        f"    qtk_wire::Value<std::decay<{kind}>::type>::give({name});"
        for name, kind in zip(signature.names, signature.types, strict=True)
    )
    asking = _ASKING.format(result=signature.result, entry=entry, parameters=signature.parameters, given=given)
    main = _TESTS_MAIN.format(tests="qtk_tests")
    return f"{wire(head, signature, strict=True)}{before}{head}\n{asking}\n{helpers}\n{tests}\n{main}"
