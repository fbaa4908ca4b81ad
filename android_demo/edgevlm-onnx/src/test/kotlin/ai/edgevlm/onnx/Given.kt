package ai.edgevlm.onnx

import ai.edgevlm.generate.AskOptions
import com.google.gson.GsonBuilder
import com.google.gson.ToNumberPolicy
import java.io.File
import java.security.MessageDigest

/** JSON that the tests' Python side wrote. */
internal object Given {
    private val gson = GsonBuilder().setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE).create()

    fun json(file: File): Any? = gson.fromJson(file.readText(), Any::class.java)

    fun list(value: Any?): List<Any?> = value as List<Any?>

    @Suppress("UNCHECKED_CAST")
    fun map(value: Any?): Map<String, Any?> = value as Map<String, Any?>

    fun options(row: Map<String, Any?>): AskOptions {
        val given = map(row["options"])
        fun real(name: String) = (given[name] as Number).toDouble()
        fun whole(name: String) = given[name] as Long
        return AskOptions(
            maxTokens = whole("max_tokens").toInt(), temperature = real("temperature"), topP = real("top_p"),
            topK = whole("top_k").toInt(), repetitionPenalty = real("repetition_penalty"), seed = whole("seed"),
            ignoreStop = given["ignore_stop"] as Boolean, maxTiles = (given["max_tiles"] as Long?)?.toInt(),
        )
    }

    /** Make the manifest say that [file] is as it should be. */
    fun resign(bundle: File, file: File) {
        val manifest = File(bundle, "manifest.json")
        val name = file.relativeTo(bundle).path
        val digest = MessageDigest.getInstance("SHA-256").digest(file.readBytes()).joinToString("") { "%02x".format(it) }
        val entry = Regex("\"${Regex.escape(name)}\": \\{[^}]*}").find(manifest.readText().substringAfterLast("\"files\""))!!.value
        val fresh = entry.replace(Regex("\"size\": \\d+"), "\"size\": ${file.length()}")
            .replace(Regex("\"sha256\": \"[0-9a-f]+\""), "\"sha256\": \"$digest\"")
        manifest.writeText(manifest.readText().replace(entry, fresh))
    }
}
