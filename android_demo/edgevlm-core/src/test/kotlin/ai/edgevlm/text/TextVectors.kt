package ai.edgevlm.text

import ai.edgevlm.json.Json
import java.io.ByteArrayOutputStream
import java.io.File
import java.security.MessageDigest
import java.util.zip.GZIPInputStream

/** text.json.gz, which android_demo/tools/make_text_vectors.py writes. */
internal object TextVectors {
    val root: Map<*, *> by lazy {
        val stream = GZIPInputStream(TextVectors::class.java.getResourceAsStream("text.json.gz")!!)
        Json.parse(stream.use { it.readAllBytes() }, 1 shl 30) as Map<*, *>
    }

    private val tokenizers = HashMap<String, Tokenizer>()

    fun tokenizer(name: String): Tokenizer = tokenizers.getOrPut(name) {
        val data = (root["tokenizers"] as Map<*, *>)[name] ?: return@getOrPut file("edgevlm/assets/default/tokenizer.json")
        Tokenizer.parse(written(data), name)
    }

    fun file(path: String): Tokenizer = Tokenizer.parse(File(System.getProperty("edgevlm.root"), path).readBytes(), path)

    /** Ids as the file has them: a list, or the hash of a long one. */
    fun short(ids: IntArray): Any {
        if (ids.size <= 24) return ids.map { it.toLong() }
        val bytes = ByteArrayOutputStream()
        for (id in ids) for (shift in 0..24 step 8) bytes.write(id ushr shift)
        return MessageDigest.getInstance("SHA-256").digest(bytes.toByteArray()).joinToString("") { "%02x".format(it) }.take(16)
    }

    fun ints(data: Any?): IntArray = (data as List<*>).map { (it as Long).toInt() }.toIntArray()

    /** A JSON value as text. */
    fun written(value: Any?): ByteArray = StringBuilder().also { write(value, it) }.toString().toByteArray()

    private fun write(value: Any?, out: StringBuilder) {
        when (value) {
            is Map<*, *> -> value.entries.joinTo(out, ",", "{", "}") { (key, each) ->
                StringBuilder().also { write(key, it); it.append(':'); write(each, it) }
            }
            is List<*> -> value.joinTo(out, ",", "[", "]") { each -> StringBuilder().also { write(each, it) } }
            is String -> {
                out.append('"')
                for (char in value) {
                    if (char < ' ' || char == '"' || char == '\\') out.append("\\u%04x".format(char.code)) else out.append(char)
                }
                out.append('"')
            }
            else -> out.append(value)
        }
    }
}
