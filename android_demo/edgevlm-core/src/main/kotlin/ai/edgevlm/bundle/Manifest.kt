package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.Fields

/** A file of a bundle: its [size] in bytes. */
public data class FileInfo(val size: Long, val sha256: String)

/** Where the weights came from: [source] is a Hub id, a folder's name or "default", [revision] a Hub commit. */
public data class ModelInfo(
    val name: String,
    val source: String,
    val revision: String?,
    val weightsSha256: String,
    val adapter: String?,
)

/** An input or output of a graph: numpy's name of its [dtype], and its [shape], in which free axes are null. */
public data class TensorInfo(val dtype: String, val shape: List<Int?>)

/**
 * A graph of an ONNX target. [portable]: the same in standard operators over the same weights. [sharedKv]: past and
 * present may be one buffer, written in place.
 */
public data class OnnxGraph(
    val file: String,
    val portable: String,
    val inputs: Map<String, TensorInfo>,
    val outputs: Map<String, TensorInfo>,
    val sharedKv: Boolean,
)

/** manifest.json, schema 2: docs/bundle-format.md. */
public class Manifest private constructor(fields: Fields) {
    public val model: ModelInfo = fields.get("model") { value, at ->
        Fields.read(value, at) {
            ModelInfo(
                text("name"), text("source"), nullable("revision", Fields::text), text("weights_sha256"),
                nullable("adapter", Fields::text),
            )
        }
    }
    public val spec: ModelSpec = fields.get("spec", ModelSpec::read)

    /** Every other file by its path from the bundle, "/" between parts. */
    public val files: Map<String, FileInfo> = fields.get("files") { value, at ->
        Fields.dict(value, at) { each, where ->
            Fields.read(each, where) { FileInfo(get("size", Fields::long), text("sha256")) }
        }
    }

    /** Names of what the bundle was exported for: "onnx", "gguf", "coreml". */
    public val targets: Set<String>

    /** The graphs of the ONNX target by component; null where the bundle has none. */
    public val onnx: Map<String, OnnxGraph>?

    /** Whether the export's gate was passed; null where it did not run. */
    public val gatePassed: Boolean?

    /** Bytes of all files. */
    public val bytes: Long get() = files.values.sumOf { it.size }

    init {
        val entries = fields.raw("targets") as Map<*, *>
        targets = entries.keys.mapTo(LinkedHashSet()) { it as String }
        onnx = entries["onnx"]?.takeIf { Fields.kind(it) == "onnx" }?.let { target ->
            val all = Fields.open(target, "$NAME: targets.onnx")
            all.get("graphs") { value, at -> Fields.dict(value, at, ::graph) }
        }
        ManifestCheck.recipe(fields.raw("recipe"))
        gatePassed = fields.nullable("gate") { value, _ -> ManifestCheck.gate(value) }
        ManifestCheck.targets(entries, spec)
        for (name in files.keys) checkName(name)
    }

    private fun graph(value: Any?, where: String): OnnxGraph = Fields.read(value, where) {
        OnnxGraph(
            text("file"), text("portable"), get("inputs") { map, at -> Fields.dict(map, at, ::tensor) },
            get("outputs") { map, at -> Fields.dict(map, at, ::tensor) }, flag("shared_kv", false),
        )
    }

    private fun tensor(value: Any?, where: String): TensorInfo = Fields.read(value, where) {
        TensorInfo(
            text("dtype"),
            get("shape") { list, at -> Fields.list(list, at) { axis, place -> if (axis is String) null else Fields.int(axis, place) } },
        )
    }

    internal companion object {
        const val NAME = "manifest.json"
        const val SCHEMA = 2L

        fun read(data: Any?): Manifest {
            val schema = (data as? Map<*, *>)?.get("schema")
            if (schema != SCHEMA) {
                throw EdgeVLMException.BundleError(
                    "The bundle has schema ${schema.toString().take(40)}, and this SDK reads schema $SCHEMA: export the bundle " +
                        "again, or update the SDK.",
                )
            }
            Records.check(data, "Manifest", NAME)
            return Manifest(Fields.open(data, NAME))
        }

        /** Names that lead out of a bundle, on any system. */
        private fun checkName(name: String) {
            val parts = name.split('/').filter { it.isNotEmpty() && it != "." }
            val inside = parts.isNotEmpty() && name[0] != '/' && '\\' !in name && ':' !in name && '\u0000' !in name
            if (inside && ".." !in parts) return
            throw EdgeVLMException.BundleError(
                "The manifest names the file '${name.take(200)}', which is outside the bundle: do not use it.",
            )
        }
    }
}

/** What a manifest's free parts must say beyond their types: Python's `edgevlm.bundle.check`. */
internal object ManifestCheck {
    private val KINDS = setOf("fp32", "fp16", "int8", "int4")

    fun recipe(data: Any?) {
        for (name in listOf("vision", "projector", "decoder", "embed", "prefill")) {
            val form = (data as Map<*, *>)[name]
            if (form == null && name == "prefill") continue
            val good = form is Map<*, *> && form["kind"] in KINDS && form["dynamic"] is Boolean
            if (!good) throw wrong("recipe.$name", form, "an object with a kind (${KINDS.joinToString(", ")}) and dynamic")
        }
    }

    /** Its verdict. */
    fun gate(data: Any?): Boolean {
        val gate = data as Map<*, *>
        val passed = gate["passed"]
        val rows = gate["rows"]
        if (passed !is Boolean || rows !is List<*>) throw wrong("gate", gate, "an object with passed and rows")
        rows.forEachIndexed { number, row ->
            val good = row is Map<*, *> && listOf("target", "check", "note").all { row[it] is String } &&
                listOf("measured", "bound").all { row[it] == null || isNumber(row[it]) } && row["passed"] is Boolean
            if (!good) throw wrong("gate.rows[$number]", row, "a row with target, check, note, measured, bound and passed")
        }
        val layers = if ("layers" in gate) gate["layers"] else emptyMap<String, Any>()
        if (layers !is Map<*, *>) throw wrong("gate.layers", layers, "an object")
        for ((name, values) in layers) {
            val good = values is Map<*, *> && values.values.all { it == null || isNumber(it) }
            if (!good) throw wrong("gate.layers.${name.toString().take(80)}", values, "numbers by layer")
        }
        return passed
    }

    /** The numbers that a runtime allocates by. */
    fun targets(targets: Map<*, *>, spec: ModelSpec) {
        for (target in targets.values.filter { Fields.kind(it) == "coreml" }) {
            val coreml = target as Map<*, *>
            val functions = (coreml["decoder"] as Map<*, *>)["functions"] as Map<*, *>
            if (functions.isEmpty()) throw wrong("targets.coreml.decoder.functions", functions, "at least one")
            for ((name, function) in functions) {
                val rows = (function as Map<*, *>)["rows"] as Long
                val context = function["context"] as Long
                val good = rows in 1..context && context <= Limits.CONTEXT
                if (!good) throw wrong("targets.coreml.decoder.functions.$name", function, "rows within a context within limits")
            }
            shape(coreml["embedding"], "embedding", listOf(spec.vocabSize, spec.hiddenSize))
            val second = if (spec.perLayerWidth > 0) listOf(spec.vocabSize, spec.perLayerWidth) else emptyList()
            shape(coreml["per_layer_embedding"], "per_layer_embedding", second)
        }
    }

    private fun shape(file: Any?, name: String, wanted: List<Int>) {
        val found = (file as Map<*, *>?)?.get("shape") as List<*>? ?: emptyList<Any>()
        if (found != wanted.map { it.toLong() }) throw wrong("targets.coreml.$name.shape", found, "$wanted of spec")
    }

    private fun isNumber(value: Any?): Boolean = value is Number && Math.abs(value.toDouble()) <= Limits.REAL

    private fun wrong(where: String, found: Any?, expected: String) = EdgeVLMException.BundleError(
        "manifest.json: $where is ${found.toString().take(100)}, expected $expected: ${Records.AGAIN}.",
    )
}
