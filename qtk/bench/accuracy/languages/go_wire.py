"""Go: an answer and its tests as two processes of one program, between which only plain values cross.

The tests are a package that initialises before the answer's does: in the process of the tests it runs them and ends that
process, so that no line of the answer ever runs there. The answer's process calls the function and sends back what it gave.
What crosses carries its type, and only types made of Go's own can cross.
"""

from __future__ import annotations

import re

TESTS_PACKAGE, WIRE_PACKAGE = "aaatests", "qtkwire"  # packages that are ready initialise in the order of their names
GONE_EXIT = 95  # what the tests end with when the answer's process has ended before them
_IS_TESTS = "tests"

WIRE_SOURCE = r"""
package qtkwire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"reflect"
)

var Tests = len(os.Args) > 1 && os.Args[1] == "IS_TESTS"
var file = os.NewFile(3, "wire")
var in, out = bufio.NewReader(file), bufio.NewWriter(file)

func gone(why string) {
	if Tests {
		fmt.Fprintln(os.Stderr, why)
		os.Exit(GONE)
	}
	os.Exit(0)
}

func send(data interface{}) { binary.Write(out, binary.LittleEndian, data) }

func receive(data interface{}) {
	if binary.Read(in, binary.LittleEndian, data) != nil {
		gone("the answer's process has ended")
	}
}

func sendText(text string) {
	send(uint32(len(text)))
	out.WriteString(text)
}

func size() int {
	var word uint32
	receive(&word)
	if word > 1<<26 {
		gone("a value is too large")
	}
	return int(word)
}

func text() string {
	data := make([]byte, size())
	if _, err := io.ReadFull(in, data); err != nil {
		gone("the answer's process has ended")
	}
	return string(data)
}

var basic = []reflect.Type{
	reflect.TypeOf(false), reflect.TypeOf(""), reflect.TypeOf(int(0)), reflect.TypeOf(int8(0)), reflect.TypeOf(int16(0)),
	reflect.TypeOf(int32(0)), reflect.TypeOf(int64(0)), reflect.TypeOf(uint(0)), reflect.TypeOf(uint8(0)),
	reflect.TypeOf(uint16(0)), reflect.TypeOf(uint32(0)), reflect.TypeOf(uint64(0)), reflect.TypeOf(float32(0)),
	reflect.TypeOf(float64(0)), reflect.TypeOf((*interface{})(nil)).Elem(),
}

func sendType(t reflect.Type) {
	for number, known := range basic {
		if t == known {
			send(uint8(number))
			return
		}
	}
	if t.Name() == "" {
		switch t.Kind() {
		case reflect.Slice:
			send(uint8(100))
			sendType(t.Elem())
			return
		case reflect.Array:
			send(uint8(101))
			send(uint32(t.Len()))
			sendType(t.Elem())
			return
		case reflect.Map:
			send(uint8(102))
			sendType(t.Key())
			sendType(t.Elem())
			return
		}
	}
	fmt.Fprintln(os.Stderr, "a value of the type", t, "cannot be handed over")
	os.Exit(1)
}

func receiveType(depth int) reflect.Type {
	var kind uint8
	receive(&kind)
	switch {
	case int(kind) < len(basic):
		return basic[kind]
	case depth > 20:
	case kind == 100:
		return reflect.SliceOf(receiveType(depth + 1))
	case kind == 101:
		length := size()
		return reflect.ArrayOf(length, receiveType(depth+1))
	case kind == 102:
		key := receiveType(depth + 1)
		if key.Comparable() {
			return reflect.MapOf(key, receiveType(depth+1))
		}
	}
	gone("not a type")
	return nil
}

func give(value reflect.Value) {
	switch value.Kind() {
	case reflect.Bool:
		send(value.Bool())
	case reflect.String:
		sendText(value.String())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		send(value.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		send(value.Uint())
	case reflect.Float32, reflect.Float64:
		send(value.Float())
	case reflect.Interface:
		Give(value.Elem())
	case reflect.Slice, reflect.Array:
		if value.Kind() == reflect.Slice && value.IsNil() {
			send(uint32(1<<32 - 1))
			return
		}
		send(uint32(value.Len()))
		for i := 0; i < value.Len(); i++ {
			give(value.Index(i))
		}
	case reflect.Map:
		if value.IsNil() {
			send(uint32(1<<32 - 1))
			return
		}
		send(uint32(value.Len()))
		for _, key := range value.MapKeys() {
			give(key)
			give(value.MapIndex(key))
		}
	}
}

// Give sends a value with its type; the zero Value stands for nil.
func Give(value reflect.Value) {
	send(value.IsValid())
	if value.IsValid() {
		sendType(value.Type())
		give(value)
	}
}

func Take() reflect.Value {
	var valid bool
	receive(&valid)
	if !valid {
		return reflect.Value{}
	}
	value := reflect.New(receiveType(0)).Elem()
	take(value)
	return value
}

func take(value reflect.Value) {
	switch value.Kind() {
	case reflect.Bool:
		var data bool
		receive(&data)
		value.SetBool(data)
	case reflect.String:
		value.SetString(text())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var data int64
		receive(&data)
		value.SetInt(data)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var data uint64
		receive(&data)
		value.SetUint(data)
	case reflect.Float32, reflect.Float64:
		var data float64
		receive(&data)
		value.SetFloat(data)
	case reflect.Interface:
		if inside := Take(); inside.IsValid() {
			value.Set(inside)
		}
	case reflect.Slice, reflect.Array, reflect.Map:
		var length uint32
		receive(&length)
		if length == 1<<32-1 {
			return
		}
		if length > 1<<26 || (value.Kind() == reflect.Array && int(length) != value.Len()) {
			gone("a value is too large")
		}
		if value.Kind() == reflect.Map {
			value.Set(reflect.MakeMap(value.Type()))
		} else if value.Kind() == reflect.Slice {
			value.Set(reflect.MakeSlice(value.Type(), 0, 0))
		}
		for i := 0; i < int(length); i++ {
			element := reflect.New(value.Type().Elem()).Elem()
			switch value.Kind() {
			case reflect.Map:
				key := reflect.New(value.Type().Key()).Elem()
				take(key)
				take(element)
				if inside := key; inside.Kind() == reflect.Interface && !inside.IsNil() && !inside.Elem().Type().Comparable() {
					gone("not a key")
				}
				value.SetMapIndex(key, element)
			case reflect.Slice:
				take(element)
				value.Set(reflect.Append(value, element))
			default:
				take(value.Index(i))
			}
		}
	}
}

// Ask calls the answer's function. The results are pointers. Slices and maps among the arguments are then as it left them.
func Ask(arguments []interface{}, results ...interface{}) {
	send(uint8('?'))
	send(uint32(len(arguments)))
	for _, argument := range arguments {
		Give(reflect.ValueOf(argument))
	}
	out.Flush()
	var sign uint8
	receive(&sign)
	if size() != len(results) {
		gone("another number of results")
	}
	for _, result := range results {
		place, value := reflect.ValueOf(result).Elem(), Take()
		if !value.IsValid() {
			continue
		}
		if !value.Type().AssignableTo(place.Type()) {
			gone(fmt.Sprint("a result of the type ", value.Type(), " and not ", place.Type()))
		}
		place.Set(value)
	}
	for _, argument := range arguments {
		before, after := reflect.ValueOf(argument), Take()
		if before.IsValid() && before.Kind() == reflect.Slice && after.IsValid() && after.Type() == before.Type() {
			reflect.Copy(before, after)
		}
	}
}

// Serve answers until the tests have ended, and then ends the process.
func Serve(function interface{}) {
	called := reflect.ValueOf(function)
	for {
		if sign, err := in.ReadByte(); err != nil || sign != '?' {
			os.Exit(0)
		}
		arguments := make([]reflect.Value, size())
		for number := range arguments {
			value := Take()
			if number < called.Type().NumIn() && !called.Type().IsVariadic() {
				wanted := called.Type().In(number)
				if !value.IsValid() {
					value = reflect.Zero(wanted)
				} else if numeric(value.Kind()) && numeric(wanted.Kind()) {
					value = value.Convert(wanted)
				}
			}
			arguments[number] = value
		}
		results := called.Call(arguments)
		send(uint8('!'))
		send(uint32(len(results)))
		for _, result := range results {
			if result.Kind() == reflect.Interface {
				result = result.Elem()
			}
			Give(result)
		}
		for _, argument := range arguments {
			if argument.Kind() != reflect.Slice {
				argument = reflect.Value{}
			}
			Give(argument)
		}
		out.Flush()
	}
}

func numeric(kind reflect.Kind) bool {
	return kind >= reflect.Int && kind <= reflect.Float64 && kind != reflect.Uintptr
}
""".replace("IS_TESTS", _IS_TESTS).replace("GONE", str(GONE_EXIT))

TESTS_ARGUMENTS = ("./main", _IS_TESTS)
# A second test says that the first came to its end; whether it passed, the exit code says. The word that says so comes on
# standard input. The word PASS that the testing package prints after both goes nowhere.
_RUNNING = """
func qtkEnd(*testing.T) {{
	qtkio.Copy(qtkos.Stdout, qtkos.Stdin)
	qtkos.Stdout, _ = qtkos.Open(qtkos.DevNull)
}}

func init() {{
	if qtkwire.Tests {{
		all := func(string, string) (bool, error) {{ return true, nil }}
		qtkos.Args = qtkos.Args[:1]
		testing.Main(all, []testing.InternalTest{{{{Name: "{0}", F: {0}}}, {{Name: "End", F: qtkEnd}}}}, nil, nil)
	}}
}}
"""
TESTS_IMPORTS = 'import (\n\tqtkio "io"\n\tqtkos "os"\n\tqtkwire "qtkwire"\n)\n'
ANSWER_IMPORTS = f'import (\n\t_ "{TESTS_PACKAGE}"\n\tqtkwire "qtkwire"\n)\n'


def running(test: str) -> str:
    """What runs the test of this name, in the process of the tests."""
    return _RUNNING.format(test)


def serving(entry: str) -> str:
    """What serves the function of this name, in the process of the answer: the last thing that its package initialises."""
    return f"\nfunc init() {{ qtkwire.Serve({entry}) }}\n"


def asking(header: str, entry: str) -> str:
    """A function that asks the answer's process, from the header of the prompt's: `func F(a, b int) (int, string) {`. Empty
    where that cannot be read."""
    found = re.fullmatch(rf"\s*func\s+{re.escape(entry)}\s*\((.*?)\)\s*([^()]*|\([^()]*\))\s*\{{\s*", header, re.DOTALL)
    if found is None:
        return ""
    parameters, results = found.group(1), found.group(2).strip()
    names = [part.split()[0] for part in parameters.split(",") if part.split()]
    types = [part.strip() for part in results.strip("()").split(",") if part.strip()]
    if any(len(kind.split()) > 1 and not kind.startswith(("map", "[")) for kind in types):
        return ""  # results with names
    places = "".join(f"\tvar qtk{number} {kind}\n" for number, kind in enumerate(types))
    pointers = "".join(f", &qtk{number}" for number in range(len(types)))
    asked = f"\tqtkwire.Ask([]interface{{}}{{{', '.join(names)}}}{pointers})\n"
    given = ", ".join(f"qtk{number}" for number in range(len(types)))
    return f"func {entry}({parameters}) {results} {{\n{places}{asked}\treturn {given}\n}}\n"
