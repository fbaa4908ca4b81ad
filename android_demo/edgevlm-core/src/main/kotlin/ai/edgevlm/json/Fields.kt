package ai.edgevlm.json

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits

/**
 * One object of a bundle's JSON files, read strictly by the rules of Python's `edgevlm.io.records.from_dict`: unknown,
 * missing and mistyped fields are refused, and so are numbers and texts beyond the limits.
 *
 * Getters without a default require the field. Only [read] makes one.
 */
internal class Fields private constructor(private val data: Map<*, *>, private val where: String) {
    private val asked = HashSet<String>()

    companion object {
        /** What [make] builds of the object [data], which [where] names in errors. No field may be left unread. */
        inline fun <T> read(data: Any?, where: String, make: Fields.() -> T): T {
            val fields = open(data, where)
            return fields.make().also { fields.finish() }
        }

        fun open(data: Any?, where: String): Fields =
            if (data is Map<*, *>) Fields(data, where) else throw wrong(where, "a JSON object", data)

        fun text(value: Any?, where: String): String {
            if (value !is String) throw wrong(where, "str", value)
            val length = value.codePointCount(0, value.length)
            if (length <= Limits.TEXT) return value
            throw bundle("$where has $length characters, expected at most ${Limits.TEXT}: export the bundle again.")
        }

        fun long(value: Any?, where: String): Long {
            if (value is Long && value in -LARGEST..LARGEST) return value
            if (value is Long || value is java.math.BigInteger) {
                throw bundle("$where is ${value.toString().take(40)}, expected at most 1e+18: export the bundle again.")
            }
            throw wrong(where, "int", value)
        }

        fun int(value: Any?, where: String): Int {
            val found = long(value, where)
            if (found in Int.MIN_VALUE..Int.MAX_VALUE) return found.toInt()
            throw bundle("$where is $found, expected at most ${Int.MAX_VALUE}: export the bundle again.")
        }

        fun real(value: Any?, where: String): Double {
            val found = when (value) {
                is Double -> value
                is Long -> value.toDouble()
                is java.math.BigInteger -> value.toDouble()
                else -> throw wrong(where, "float", value)
            }
            if (Math.abs(found) <= Limits.REAL) return found
            throw bundle("$where is $found, expected at most 1e+18: export the bundle again.")
        }

        fun flag(value: Any?, where: String): Boolean = value as? Boolean ?: throw wrong(where, "bool", value)

        inline fun <T> list(value: Any?, where: String, item: (Any?, String) -> T): List<T> {
            if (value !is List<*>) throw wrong(where, "tuple", value)
            return value.mapIndexed { i, each -> item(each, "$where[$i]") }
        }

        /** A list of exactly [size] items. */
        inline fun <T> list(value: Any?, where: String, size: Int, item: (Any?, String) -> T): List<T> {
            val found = list(value, where, item)
            if (found.size == size) return found
            throw bundle("$where should have $size items, found ${found.size}: export the bundle again.")
        }

        inline fun <T> dict(value: Any?, where: String, item: (Any?, String) -> T): Map<String, T> {
            if (value !is Map<*, *>) throw wrong(where, "dict", value)
            val found = LinkedHashMap<String, T>()
            for ((key, each) in value) found[key as String] = item(each, "$where.$key")
            return found
        }

        /** The `kind` of an object that is one of several; [unknown] is what to throw for one that is none of them. */
        fun kind(value: Any?): String = (value as? Map<*, *>)?.get("kind") as? String ?: ""

        fun unknown(value: Any?, where: String): EdgeVLMException = bundle(
            "$where is of the unknown kind '${kind(value).take(80)}': export the bundle again, or update the SDK.",
        )

        fun wrong(where: String, expected: String, found: Any?): EdgeVLMException =
            bundle("$where should be $expected, found ${found.toString().take(100)}: export the bundle again.")

        fun bundle(sentence: String): EdgeVLMException = EdgeVLMException.BundleError(sentence)

        private const val LARGEST = 1_000_000_000_000_000_000L
    }

    fun has(name: String): Boolean = name in data

    /** The value of a field that is given (its absence is an error) and where it stands. */
    fun raw(name: String): Any? {
        asked += name
        if (name !in data) throw bundle("$where lacks the field '$name': export the bundle again.")
        return data[name]
    }

    /** What [read] makes of the field, which must be there. */
    inline fun <T> get(name: String, read: (Any?, String) -> T): T = read(raw(name), "$where: $name")

    /** The same where the field may be absent. */
    inline fun <T> get(name: String, default: T, read: (Any?, String) -> T): T =
        if (has(name)) get(name, read) else default

    /** The same where the field must be there and may be null. */
    inline fun <T : Any> nullable(name: String, read: (Any?, String) -> T): T? = raw(name)?.let { read(it, "$where: $name") }

    /** The same where the field may be absent or null. */
    inline fun <T : Any> optional(name: String, read: (Any?, String) -> T): T? =
        if (has(name)) nullable(name, read) else null

    fun text(name: String): String = get(name, ::text)

    fun text(name: String, default: String): String = get(name, default, ::text)

    fun int(name: String): Int = get(name, ::int)

    fun int(name: String, default: Int): Int = get(name, default, ::int)

    fun real(name: String): Double = get(name, ::real)

    fun real(name: String, default: Double): Double = get(name, default, ::real)

    fun flag(name: String): Boolean = get(name, ::flag)

    fun flag(name: String, default: Boolean): Boolean = get(name, default, ::flag)

    fun finish() {
        val left = data.keys.firstOrNull { it !in asked } ?: return
        throw bundle(
            "$where has the unknown field '${left.toString().take(100)}': it was written by another version of edgevlm; " +
                "export the bundle again.",
        )
    }
}

/** Refuse a spec in which [name] is [found] unless [good]. [which]: "image" or "prompt". As Python's `check`. */
internal inline fun checkSpec(good: Boolean, which: String, name: String, expected: Any, found: () -> Any?) {
    if (!good) {
        throw EdgeVLMException.BundleError(
            "The $which spec has $name = ${found().toString().take(100)}, expected $expected: export the bundle again, " +
                "or update the SDK if the bundle is newer.",
        )
    }
}
