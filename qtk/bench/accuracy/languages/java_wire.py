"""Java: an answer and its tests in two virtual machines, between which only plain values cross.

Both are compiled at once, in packages of their own, so that no class of the answer hides one that the tests name. The classes of
the tests then lie in an archive without a name, which only the tests' machine has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANSWER_PACKAGE, TESTS_PACKAGE = "qtkanswer", "qtktests"
GONE_EXIT = 95  # what the tests end with when the answer's machine has ended before them

WIRE_SOURCES = {
    "qtkwire/Wire.java": r"""
package qtkwire;

import java.io.*;
import java.lang.reflect.Array;
import java.util.*;

public final class Wire {
    private static DataInputStream in;
    private static DataOutputStream out;

    static void open() throws Exception {
        var make = FileDescriptor.class.getDeclaredConstructor(int.class);
        make.setAccessible(true);
        FileDescriptor wire = make.newInstance(3);
        in = new DataInputStream(new BufferedInputStream(new FileInputStream(wire)));
        out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(wire)));
    }

    static DataInputStream in() { return in; }
    static DataOutputStream out() { return out; }

    private static void text(String value) throws IOException {
        byte[] data = value.getBytes("UTF-16BE");
        out.writeInt(data.length);
        out.write(data);
    }

    private static int size() throws IOException {
        int size = in.readInt();
        if (size < 0 || size > 1 << 27) throw new EOFException("a value is too large");
        return size;
    }

    static String text() throws IOException { return new String(in.readNBytes(size()), "UTF-16BE"); }
    static void word(String value) throws IOException { text(value); }

    private static final Class<?>[] ITEMS = {int.class, long.class, double.class, float.class, boolean.class, char.class,
        byte.class, short.class, String.class, Integer.class, Long.class, Double.class, Boolean.class, Character.class, Object.class};

    /** Whether a text is the one that a literal of its letters is: == of texts then says the same on the other side. */
    private static boolean constant(String value) { return new String(value.toCharArray()).intern() == value; }

    static void give(Object value) throws IOException {
        if (value == null) { out.write('n'); return; }
        Class<?> kind = value.getClass();
        if (kind == Integer.class) { out.write('i'); out.writeInt((Integer) value); }
        else if (kind == Long.class) { out.write('l'); out.writeLong((Long) value); }
        else if (kind == Double.class) { out.write('d'); out.writeDouble((Double) value); }
        else if (kind == Float.class) { out.write('f'); out.writeFloat((Float) value); }
        else if (kind == Boolean.class) { out.write('b'); out.writeBoolean((Boolean) value); }
        else if (kind == Character.class) { out.write('c'); out.writeChar((Character) value); }
        else if (kind == Short.class) { out.write('h'); out.writeShort((Short) value); }
        else if (kind == Byte.class) { out.write('y'); out.writeByte((Byte) value); }
        else if (kind == String.class) { out.write(constant((String) value) ? 'k' : 's'); text((String) value); }
        else if (kind == java.math.BigInteger.class) { out.write('B'); text(value.toString()); }
        else if (kind == java.math.BigDecimal.class) { out.write('D'); text(value.toString()); }
        else if (value instanceof Optional) { out.write('o'); give(((Optional<?>) value).orElse(null)); }
        else if (value instanceof Map) { out.write('m'); pairs((Map<?, ?>) value); }
        else if (value instanceof Set) { out.write('S'); items((Collection<?>) value); }
        else if (value instanceof List) { out.write('L'); items((Collection<?>) value); }
        else if (value instanceof Deque) { out.write('q'); items((Collection<?>) value); }
        else if (value instanceof Map.Entry) {
            out.write('e'); give(((Map.Entry<?, ?>) value).getKey()); give(((Map.Entry<?, ?>) value).getValue());
        }
        else if (kind.getName().startsWith("org.javatuples.")) {
            out.write('t');
            text(kind.getSimpleName());
            List<Object> items = new ArrayList<>();
            for (Object item : (Iterable<?>) value) items.add(item);
            items(items);
        }
        else if (kind.isArray()) {
            Class<?> item = kind.getComponentType();
            int depth = 1;
            while (item.isArray()) { item = item.getComponentType(); depth += 1; }
            int number = Arrays.asList(ITEMS).indexOf(item);
            out.write('a');
            out.writeByte(number < 0 ? ITEMS.length - 1 : number);
            out.writeByte(depth);
            out.writeInt(Array.getLength(value));
            for (int i = 0; i < Array.getLength(value); i++) give(Array.get(value, i));
        }
        else throw new IOException("a " + kind.getName() + " cannot be handed over");
    }

    private static void items(Collection<?> values) throws IOException {
        Object[] all = values.toArray();
        out.writeInt(all.length);
        for (Object value : all) give(value);
    }

    private static void pairs(Map<?, ?> values) throws IOException {
        Object[] all = values.entrySet().toArray();
        out.writeInt(all.length);
        for (Object entry : all) { give(((Map.Entry<?, ?>) entry).getKey()); give(((Map.Entry<?, ?>) entry).getValue()); }
    }

    static Object take() throws Exception {
        int kind = in.read();
        switch (kind) {
            case 'n': return null;
            case 'i': return in.readInt();
            case 'l': return in.readLong();
            case 'd': return in.readDouble();
            case 'f': return in.readFloat();
            case 'b': return in.readBoolean();
            case 'c': return in.readChar();
            case 'h': return in.readShort();
            case 'y': return in.readByte();
            case 's': return text();
            case 'k': return text().intern();
            case 'B': return new java.math.BigInteger(text());
            case 'D': return new java.math.BigDecimal(text());
            case 'o': return Optional.ofNullable(take());
            case 'm': {
                Map<Object, Object> map = new LinkedHashMap<>();
                for (int left = size(); left > 0; left--) { Object key = take(); map.put(key, take()); }
                return map;
            }
            case 'S': return new LinkedHashSet<>(list());
            case 'L': return list();
            case 'q': return new ArrayDeque<>(list());
            case 'e': { Object key = take(); return new AbstractMap.SimpleEntry<>(key, take()); }
            case 't': {
                String name = text();
                if (!name.matches("[A-Za-z]+")) throw new EOFException("not a tuple");
                List<Object> items = list();
                return Class.forName("org.javatuples." + name).getMethod("fromCollection", Collection.class).invoke(null, items);
            }
            case 'a': {
                Class<?> item = ITEMS[in.readByte()];
                for (int depth = in.readByte(); depth > 1; depth--) item = item.arrayType();
                int size = size();
                Object array = Array.newInstance(item, size);
                for (int i = 0; i < size; i++) Array.set(array, i, take());
                return array;
            }
        }
        throw new EOFException("the answer's machine has ended");
    }

    private static List<Object> list() throws Exception {
        List<Object> items = new ArrayList<>();
        for (int left = size(); left > 0; left--) items.add(take());
        return items;
    }

    private static void gone(Throwable why) {
        System.err.println(why);
        System.err.flush();
        Runtime.getRuntime().halt(GONE);
    }

    @SuppressWarnings("unchecked")
    private static <T extends Throwable> void thrown(Throwable error) throws T { throw (T) error; }

    /** Calls the answer's method. What it throws is thrown anew, by name. */
    public static Object ask(String method, Object... arguments) {
        Throwable error = null;
        try {
            out.write('?');
            text(method);
            out.writeInt(arguments.length);
            for (Object argument : arguments) give(argument);
            out.flush();
            int sign = in.read();
            if (sign == '!') return take();
            if (sign != 'x') throw new EOFException("the answer's machine has ended");
            String name = text(), message = text();
            error = new RuntimeException(name + ": " + message);
            if (name.matches("java\\.(lang|util)\\.[A-Za-z]+(Exception|Error)")) {
                try { error = (Throwable) Class.forName(name).getConstructor(String.class).newInstance(message); }
                catch (ReflectiveOperationException | ClassCastException other) { }
            }
        } catch (Exception why) {
            gone(why);
        }
        Wire.<RuntimeException>thrown(error);
        return null;
    }

    public static int whole(Object value) {
        if (value instanceof Long) return Math.toIntExact((Long) value);
        return value instanceof Number ? (int) (Integer) value : (int) (Character) value;
    }

    public static long large(Object value) { return value instanceof Integer ? (Integer) value : (Long) value; }
    public static double real(Object value) { return value instanceof Number ? ((Number) value).doubleValue() : (Double) value; }
}
""".replace("GONE", str(GONE_EXIT)),
    "qtkwire/Serve.java": r"""
package qtkwire;

import java.lang.reflect.*;

/** The answer's machine: calls the methods of one class until the tests have ended. */
final class Serve {
    public static void main(String[] words) throws Throwable {
        Wire.open();
        Class<?> kind = Class.forName(words[0]);
        Object made = null;
        while (Wire.in().read() == '?') {
            String name = Wire.text();
            Object[] arguments = new Object[Wire.in().readInt()];
            for (int i = 0; i < arguments.length; i++) arguments[i] = Wire.take();
            Object result = null;
            Throwable error = null;
            try {
                Method method = found(kind, name, arguments);
                if (made == null && !Modifier.isStatic(method.getModifiers())) {
                    Constructor<?> maker = kind.getDeclaredConstructor();
                    maker.setAccessible(true);
                    made = maker.newInstance();
                }
                result = method.invoke(made, arguments);
            } catch (InvocationTargetException wrapped) {
                error = wrapped.getCause();
            }
            if (error == null) { Wire.out().write('!'); Wire.give(result); }
            else {
                error.printStackTrace();
                Wire.out().write('x');
                Wire.word(error.getClass().getName());
                Wire.word(String.valueOf(error.getMessage()));
            }
            Wire.out().flush();
        }
    }

    private static Method found(Class<?> kind, String name, Object[] arguments) throws NoSuchMethodException {
        for (Method method : kind.getDeclaredMethods()) {
            if (!method.getName().equals(name) || method.getParameterCount() != arguments.length) continue;
            Object[] fitted = new Object[arguments.length];
            boolean fits = true;
            for (int i = 0; i < fitted.length && fits; i++) {
                fitted[i] = fitted(method.getParameterTypes()[i], arguments[i]);
                fits = fitted[i] != null || arguments[i] == null;
            }
            if (!fits) continue;
            System.arraycopy(fitted, 0, arguments, 0, fitted.length);
            method.setAccessible(true);
            return method;
        }
        throw new NoSuchMethodException(name);
    }

    /** The argument as a parameter of this type takes it; null where it does not. */
    private static Object fitted(Class<?> wanted, Object value) {
        if (value == null) return null;
        if (wanted == long.class && value instanceof Integer) return (long) (Integer) value;
        if (wanted == double.class && value instanceof Integer) return (double) (Integer) value;
        if (wanted == double.class && value instanceof Long) return (double) (Long) value;
        if (wanted == double.class && value instanceof Float) return (double) (Float) value;
        if (wanted == float.class && value instanceof Double) return (float) (double) (Double) value;
        if (wanted == float.class && value instanceof Integer) return (float) (Integer) value;
        if (wanted.isPrimitive()) wanted = java.lang.invoke.MethodType.methodType(wanted).wrap().returnType();
        return wanted.isInstance(value) ? value : null;
    }
}
""",
    "qtkwire/Tests.java": r"""
package qtkwire;

import java.lang.reflect.*;

/** The tests' machine: runs a class, and then says the word that stands on standard input. */
final class Tests {
    public static void main(String[] words) throws Throwable {
        Wire.open();
        Method main = Class.forName(words[0]).getDeclaredMethod("main", String[].class);
        main.setAccessible(true);
        try { main.invoke(null, (Object) new String[0]); }
        catch (InvocationTargetException wrapped) { throw wrapped.getCause(); }
        System.out.flush();
        System.in.transferTo(System.out);
        System.out.flush();
        System.exit(0);
    }
}
""",
}
_KINDS = {"int": "qtkwire.Wire.whole(%s)", "long": "qtkwire.Wire.large(%s)", "double": "qtkwire.Wire.real(%s)"}


@dataclass(frozen=True)
class _Method:
    """The header of a method."""

    text: str
    result: str
    names: tuple[str, ...]


def _header(header: str, entry: str) -> _Method | None:
    found = re.match(
        rf"\s*((?:@\w+\s+)*(?:\w+\s+)*?)([\w.]+(?:<.*>)?[\w.<>\[\],? ]*)\s+{re.escape(entry)}\s*\(([^)]*)\)[^{{]*\{{",
        header,
    )
    if found is None:
        return None
    words = found.group(2).split()
    while words and words[0] in ("public", "private", "protected", "static", "final", "synchronized"):
        words.pop(0)
    names = tuple(name.group(1) for name in re.finditer(r"(\w+)\s*(?:,(?![^<]*>)|$)", found.group(3)))
    return _Method(header[found.start() : found.end()], " ".join(words), names)


def asking(header: str, entry: str) -> str:
    """A method that asks the answer's machine, from the header of the prompt's. Empty where that cannot be read."""
    method = _header(header, entry)
    if method is None:
        return ""
    asked = f'qtkwire.Wire.ask("{entry}"{"".join(f", (Object) {name}" for name in method.names)})'
    if method.result == "void":
        return f"{method.text} {asked}; }}\n"
    given = _KINDS.get(method.result, f"({method.result}) %s") % asked
    return f"{method.text} return {given}; }}\n"
