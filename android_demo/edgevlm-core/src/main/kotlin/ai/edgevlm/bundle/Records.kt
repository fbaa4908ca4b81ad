package ai.edgevlm.bundle

import ai.edgevlm.json.Fields
import ai.edgevlm.json.Json

/**
 * What a manifest may hold: records.json, which tools/make_records.py writes out of the dataclasses that write manifests.
 *
 * Every field is checked, those too that nothing here reads: unknown, missing and mistyped ones are refused, and so are
 * numbers and words beyond their bounds.
 */
internal object Records {
    private val records: Map<*, *> by lazy {
        val stream = checkNotNull(Records::class.java.getResourceAsStream("records.json")) { "records.json is missing" }
        Json.parse(stream.use { it.readBytes() }, 1 shl 20) as Map<*, *>
    }

    /** Throws `EdgeVLMException.BundleError` unless [data] is a [record]; [where] names it in errors. */
    fun check(data: Any?, record: String, where: String) {
        val fields = Fields.open(data, where)
        for ((name, field) in records[record] as Map<*, *>) {
            name as String
            field as Map<*, *>
            if (fields.has(name) || field["needed"] == true) {
                fields.get(name) { value, at -> check(value, field["type"], field["bound"] as List<*>?, at) }
            }
        }
        fields.finish()
    }

    private fun check(value: Any?, type: Any?, bound: List<*>?, where: String) {
        when (type) {
            "int" -> within(Fields.long(value, where), bound, where)
            "float" -> within(Fields.real(value, where), bound, where)
            "str" -> word(Fields.text(value, where), bound, where)
            "bool" -> Fields.flag(value, where)
            "any" -> Unit
            is Map<*, *> -> type.entries.single().let { (kind, inner) -> compound(value, kind as String, inner, bound, where) }
            else -> error("unknown type $type")
        }
    }

    private fun compound(value: Any?, kind: String, inner: Any?, bound: List<*>?, where: String) {
        when (kind) {
            "record" -> check(value, inner as String, where)
            "kinds" -> check(value, (inner as Map<*, *>)[Fields.kind(value)] as String? ?: throw Fields.unknown(value, where), where)
            "null" -> if (value != null) check(value, inner, bound, where)
            "list" -> Fields.list(value, where) { each, at -> check(each, inner, bound, at) }
            "dict" -> Fields.dict(value, where) { each, at -> check(each, inner, bound, at) }
            "items" -> {
                val types = inner as List<*>
                var next = 0
                Fields.list(value, where, types.size) { each, at -> if (next < types.size) check(each, types[next++], bound, at) }
            }
            "one" -> if (value is String) Fields.text(value, where) else Fields.long(value, where)
            else -> error("unknown type $kind")
        }
    }

    private fun within(found: Number, bound: List<*>?, where: String) {
        if (bound == null) return
        val (least, most) = bound.map { (it as Number).toDouble() }
        if (found.toDouble() in least..most) return
        throw Fields.bundle("$where is $found, expected $least to $most; $AGAIN.")
    }

    private fun word(found: String, bound: List<*>?, where: String) {
        if (bound.isNullOrEmpty() || found in bound) return
        throw Fields.bundle("$where is '${found.take(80)}', expected ${bound.joinToString(" or ")}; $AGAIN.")
    }

    const val AGAIN: String = "export or copy the bundle again"
}
