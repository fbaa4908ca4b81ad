package ai.edgevlm.install

import ai.edgevlm.Vectors
import ai.edgevlm.obj
import ai.edgevlm.objects
import ai.edgevlm.text.TextVectors
import java.io.File
import kotlin.random.Random

/** A bundle of a small model, with files of any bytes for its weights. */
internal object MadeBundle {
    val weights = mapOf("decoder.onnx" to 3_000, "onnx/decoder.bin" to 1_500_000, "onnx/empty.bin" to 0, "onnx/encoder with space é.bin" to 700_001)

    /** [seed]: another gives other weights. [change] has a last word on the manifest's files. */
    fun make(folder: File, seed: Int = 1, change: (MutableMap<String, Any?>) -> Unit = {}): File {
        folder.mkdirs()
        val family = TextVectors.root["prompts"].objects().first()
        val contents = LinkedHashMap<String, ByteArray>()
        for ((name, key) in mapOf("preprocess.json" to "image", "prompt.json" to "spec", "tokenizer.json" to "tokenizer")) {
            contents[name] = TextVectors.written(family[key])
        }
        for ((name, size) in weights) contents[name] = Random(seed + size).nextBytes(size)
        val files = LinkedHashMap<String, Any?>()
        for ((name, bytes) in contents) {
            File(folder, name).apply { parentFile.mkdirs() }.writeBytes(bytes)
            files[name] = mapOf("size" to bytes.size, "sha256" to Vectors.sha256(bytes))
        }
        change(files)
        val form = mapOf("kind" to "fp32", "dynamic" to false)
        val manifest = mapOf(
            "schema" to 2,
            "model" to mapOf("name" to "tiny", "source" to "default", "revision" to null, "weights_sha256" to "", "adapter" to null),
            "spec" to family["model"].obj(), "recipe" to mapOf("vision" to form, "projector" to form, "decoder" to form, "embed" to form),
            "targets" to emptyMap<String, Any?>(), "files" to files, "tools" to mapOf("edgevlm" to "1"), "gate" to null,
        )
        File(folder, "manifest.json").writeBytes(TextVectors.written(manifest))
        return folder
    }

    /** Every file below a folder by its path, the locks of installers left out. */
    fun files(folder: File): Map<String, String> = folder.walk().filter { it.isFile && !it.name.endsWith("-lock") }
        .associate { it.relativeTo(folder).invariantSeparatorsPath to Vectors.sha256(it.readBytes()) }
}
