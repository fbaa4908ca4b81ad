package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import ai.edgevlm.int
import ai.edgevlm.obj
import ai.edgevlm.objects
import ai.edgevlm.text.Message
import ai.edgevlm.text.TextVectors
import java.io.File
import java.nio.file.Files
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

class BundleTest {
    @TempDir
    lateinit var made: Path

    private val families = TextVectors.root["prompts"].objects()

    /** A bundle of a family's small model without its weights; [change] has a last word on each file's value. */
    private fun bundle(family: Map<String, Any?>, folder: File, change: (String, MutableMap<String, Any?>) -> Unit = { _, _ -> }): File {
        folder.mkdirs()
        val parts = mapOf("preprocess.json" to "image", "prompt.json" to "spec", "tokenizer.json" to "tokenizer")
        val files = LinkedHashMap<String, Any?>()
        for ((name, key) in parts) {
            val bytes = TextVectors.written(changed(family[key]).also { change(name, it) })
            File(folder, name).writeBytes(bytes)
            files[name] = mapOf("size" to bytes.size, "sha256" to Vectors.sha256(bytes))
        }
        val form = mapOf("kind" to "fp32", "dynamic" to false)
        val tensor = mapOf("dtype" to "float32", "shape" to listOf("batch", 3))
        val graph = mapOf("file" to "a.onnx", "portable" to "b.onnx", "inputs" to mapOf("x" to tensor), "outputs" to mapOf("y" to tensor))
        val manifest = mutableMapOf<String, Any?>(
            "schema" to 2,
            "model" to mapOf("name" to "tiny", "source" to "default", "revision" to null, "weights_sha256" to "", "adapter" to null),
            "spec" to changed(family["model"]), "recipe" to mapOf("vision" to form, "projector" to form, "decoder" to form, "embed" to form),
            "targets" to mutableMapOf<String, Any?>("onnx" to mapOf("graphs" to mapOf("decoder" to graph), "kind" to "onnx")),
            "files" to files, "tools" to mapOf("edgevlm" to "1"), "gate" to mapOf("passed" to true, "rows" to emptyList<Any>()),
        )
        change("manifest.json", manifest)
        File(folder, "manifest.json").writeBytes(TextVectors.written(manifest))
        return folder
    }

    /** A deep copy that can be changed. */
    private fun changed(value: Any?): MutableMap<String, Any?> = copy(value).let {
        @Suppress("UNCHECKED_CAST")
        it as MutableMap<String, Any?>
    }

    private fun copy(value: Any?): Any? = when (value) {
        is Map<*, *> -> value.entries.associateTo(LinkedHashMap()) { it.key to copy(it.value) }
        is List<*> -> value.mapTo(ArrayList()) { copy(it) }
        else -> value
    }

    @TestFactory
    fun `bundles of every family open`(): List<DynamicTest> = families.map { family ->
        DynamicTest.dynamicTest(family["name"] as String) {
            val bundle = Bundle.open(bundle(family, made.resolve(family["name"] as String).toFile()), everything = true)
            val spec = bundle.manifest.spec
            val facts = family["facts"].obj()
            val states = spec.states.map { state -> listOf(state.name, state.shape.map { it?.toLong() }, state.kind.name.lowercase(), state.dtype) }
            assertEquals(facts["states"], states)
            assertEquals(facts["embed_width"].int(), spec.embedWidth)
            assertEquals(facts["feature_width"].int(), spec.featureWidth)
            assertEquals(facts["replaces"], spec.replaces)
            for (grid in facts["grids"] as List<*>) {
                val (high, wide, rows, columns) = (grid as List<*>).map { it.int() }
                val found = spec.tokenGrid(high, wide)
                assertEquals(listOf(rows, columns), listOf(found.rows, found.columns))
            }
            val prompter = bundle.prompter()
            assertTrue(bundle.imageSpec.plan(64, 64).isNotEmpty())
            assertTrue(prompter.encode(listOf(Message.question("Hi"))).ids.isNotEmpty())
            assertEquals(listOf(null, 3), bundle.manifest.onnx!!.getValue("decoder").inputs.getValue("x").shape)
            assertEquals(true, bundle.manifest.gatePassed)
        }
    }

    @Suppress("UNCHECKED_CAST")
    private fun MutableMap<String, Any?>.at(vararg path: String): MutableMap<String, Any?> =
        path.fold(this) { map, key -> map[key] as MutableMap<String, Any?> }

    @TestFactory
    fun `what a bundle may not be`(): List<DynamicTest> {
        val wrong = mapOf<String, (MutableMap<String, Any?>) -> Unit>(
            "schema 1" to { it["schema"] = 1 },
            "schema 2.0" to { it["schema"] = 2.0 },
            "no schema" to { it.remove("schema") },
            "unknown field" to { it["more"] = 1 },
            "unknown field inside" to { it.at("spec", "decoder")["more"] = 1 },
            "no spec" to { it.remove("spec") },
            "no vocab_size" to { it.at("spec", "decoder").remove("vocab_size") },
            "a text for a number" to { it.at("spec", "decoder")["vocab_size"] = "9" },
            "true for a number" to { it.at("spec", "decoder")["vocab_size"] = true },
            "a real for a whole number" to { it.at("spec", "decoder")["vocab_size"] = 500.0 },
            "no vocabulary" to { it.at("spec", "decoder")["vocab_size"] = 0 },
            "a huge vocabulary" to { it.at("spec", "decoder")["vocab_size"] = 1 shl 30 },
            "a vocabulary beyond all" to { it.at("spec", "decoder")["vocab_size"] = 9e18.toLong() },
            "a small vocabulary" to { it.at("spec", "decoder")["vocab_size"] = 10 },
            "a huge context" to { it.at("spec", "decoder")["context_length"] = 1 shl 21 },
            "a layer without a block" to { it.at("spec", "decoder")["layers"] = listOf(0, 7) },
            "no layers" to { it.at("spec", "decoder")["layers"] = emptyList<Any>() },
            "an unknown tower" to { it.at("spec", "vision")["kind"] = "vat" },
            "a tower of no kind" to { it.at("spec", "vision").remove("kind") },
            "an unknown mask" to { it.at("spec", "decoder")["mask"] = "none" },
            "a rope that is not there" to { it.at("spec", "decoder")["ropes"] = emptyMap<String, Any>() },
            "another image token" to { it.at("spec")["image_token_id"] = 3 },
            "a marker without a row" to { it.at("spec")["markers"] = listOf(3) },
            "a newline without a row" to { it.at("spec")["newline"] = true },
            "no form" to { it["recipe"] = mapOf("vision" to 1) },
            "a gate without rows" to { it["gate"] = mapOf("passed" to true) },
            "an unknown target" to { it.at("targets")["tflite"] = mapOf("kind" to "tflite") },
            "a target that is a list" to { it["targets"] = listOf(1) },
            "a file outside" to { it.at("files")["../x"] = mapOf("size" to 1, "sha256" to "") },
            "an absolute file" to { it.at("files")["/etc/passwd"] = mapOf("size" to 1, "sha256" to "") },
            "a file on a drive" to { it.at("files")["c:x"] = mapOf("size" to 1, "sha256" to "") },
            "a file behind a backslash" to { it.at("files")["..\\x"] = mapOf("size" to 1, "sha256" to "") },
            "a file of no name" to { it.at("files")[""] = mapOf("size" to 1, "sha256" to "") },
            "a file with a zero in its name" to { it.at("files")["a\u0000b"] = mapOf("size" to 1, "sha256" to "") },
            "a file that is missing" to { it.at("files")["x"] = mapOf("size" to 1, "sha256" to "") },
            "a file of another size" to { (it.at("files")["prompt.json"] as Map<*, *>).let { info -> it.at("files")["prompt.json"] = info + ("size" to 1) } },
            "a changed file" to { (it.at("files")["prompt.json"] as Map<*, *>).let { info -> it.at("files")["prompt.json"] = info + ("sha256" to "0".repeat(64)) } },
            "no prompt.json" to { it.at("files").remove("prompt.json") },
        )
        val specs = mapOf<String, Pair<String, (MutableMap<String, Any?>) -> Unit>>(
            "version 1" to ("prompt.json" to { it["version"] = 1 }),
            "an unknown field" to ("prompt.json" to { it["x"] = 1 }),
            "an unknown field of the chat" to ("prompt.json" to { it.at("chat")["x"] = 1 }),
            "no user" to ("prompt.json" to { it.at("chat")["roles"] = emptyMap<String, Any>() }),
            "no stop" to ("prompt.json" to { it["stop_ids"] = emptyList<Any>() }),
            "a stop outside" to ("prompt.json" to { it["stop_ids"] = listOf(1 shl 20) }),
            "a negative stop" to ("prompt.json" to { it["stop_ids"] = listOf(-1) }),
            "too many stops" to ("prompt.json" to { it["stop_ids"] = List(257) { 1 } }),
            "another token" to ("prompt.json" to { it["image_token"] = "<nothing>" }),
            "a long text" to ("prompt.json" to { it.at("chat")["prefix"] = "x".repeat((1 shl 16) + 1) }),
            "no bos" to ("prompt.json" to { it["add_bos"] = true; it["bos_id"] = null }),
            "thinking without direct" to ("prompt.json" to { it.at("chat")["thinking"] = "x" }),
            "an unknown place" to ("prompt.json" to { it.at("chat", "roles", "user")["places"] = "circles" }),
            "an unknown system" to ("prompt.json" to { it.at("chat")["system"] = "last" }),
            "a region head that is not there" to ("prompt.json" to { it.at("chat", "roles", "user")["places"] = "boxes" }),
            "an image spec of version 3" to ("preprocess.json" to { it["version"] = 3 }),
            "another side" to ("preprocess.json" to { it.at("rule")["side"] = 8 }),
            "another number of tokens" to ("preprocess.json" to { it["tokens"] = null; it["token_pixels"] = 3 }),
            "a word as vocabulary" to ("tokenizer.json" to { it["model"] = "x" }),
            "an unknown model" to ("tokenizer.json" to { it.at("model")["type"] = "WordPiece" }),
            "an unknown pre-tokenizer" to ("tokenizer.json" to { it["pre_tokenizer"] = mapOf("type" to "Whitespace") }),
            "an unknown normalizer" to ("tokenizer.json" to { it["normalizer"] = mapOf("type" to "Lowercase") }),
            "an unknown decoder" to ("tokenizer.json" to { it["decoder"] = mapOf("type" to "WordPiece") }),
            "no decoder" to ("tokenizer.json" to { it["decoder"] = null }),
            "an expression that backtracks" to ("tokenizer.json" to { it["pre_tokenizer"] = mapOf("type" to "Split", "pattern" to mapOf("Regex" to "(a+)+$"), "behavior" to "Isolated", "invert" to false) }),
            "a merge of no tokens" to ("tokenizer.json" to { it.at("model")["merges"] = listOf(listOf("no", "such")) }),
            "a token of another id" to ("tokenizer.json" to { it["added_tokens"] = (it["added_tokens"] as List<*>).map { token -> (token as Map<*, *>) + ("id" to 7) } }),
            "two tokens of one id" to ("tokenizer.json" to { it.at("model", "vocab").let { vocab -> vocab[vocab.keys.last()] = vocab.values.first() } }),
            "one step too many" to ("tokenizer.json" to { it["normalizer"] = mapOf("type" to "Sequence", "normalizers" to List(65) { mapOf("type" to "NFC") }) }),
            "a text that grows" to ("tokenizer.json" to { it["normalizer"] = mapOf("type" to "Prepend", "prepend" to "x".repeat(100)) }),
        )
        val family = families.first { (it["name"] as String).startsWith("smolvlm") }
        val all = wrong.mapValues { "manifest.json" to it.value } + specs
        return all.map { (what, change) ->
            DynamicTest.dynamicTest(what) {
                val folder = bundle(family, made.resolve("wrong").toFile()) { name, data -> if (name == change.first) change.second(data) }
                val error = assertThrows<EdgeVLMException> {
                    val bundle = Bundle.open(folder)
                    bundle.imageSpec
                    bundle.prompter().encode(listOf(Message.question("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab".repeat(4))))
                }
                assertTrue(error is EdgeVLMException.BundleError || error is EdgeVLMException.Unsupported, "$error")
                assertTrue(error.message!!.length <= 1000)
            }
        }
    }

    @Test
    fun `links may lead inside and not outside`() {
        val folder = bundle(families[0], made.resolve("linked").toFile())
        val prompt = folder.toPath().resolve("prompt.json")
        val inside = folder.toPath().resolve("real.json")
        Files.move(prompt, inside)
        Files.createSymbolicLink(prompt, inside)
        Bundle.open(folder)
        val outside = Files.move(inside, made.resolve("outside.json"))
        Files.delete(prompt)
        Files.createSymbolicLink(prompt, outside)
        assertThrows<EdgeVLMException.BundleError> { Bundle.open(folder) }
        Files.delete(prompt)
        Files.move(outside, prompt)
        Bundle.open(folder)
        for (target in listOf(made, made.resolve("nowhere"))) { // of no file in the manifest
            val link = Files.createSymbolicLink(folder.toPath().resolve("more"), target)
            assertThrows<EdgeVLMException.BundleError> { Bundle.open(folder) }
            Files.delete(link)
        }
    }

    @Test
    fun `a snapshot in the Hub's cache is a bundle`() {
        val cache = made.resolve("models--owner--name")
        val folder = bundle(families[0], cache.resolve("snapshots/abc").toFile())
        val blob = Files.createDirectories(cache.resolve("blobs")).resolve("123")
        Files.move(folder.toPath().resolve("prompt.json"), blob)
        Files.createSymbolicLink(folder.toPath().resolve("prompt.json"), blob)
        Bundle.open(folder)
    }

    @Test
    fun `what is no folder is no bundle`() {
        for (place in listOf(made.resolve("nowhere"), made, Files.createFile(made.resolve("file")))) {
            assertThrows<EdgeVLMException.BundleError> { Bundle.open(place.toFile()) }
        }
        assertThrows<EdgeVLMException.BundleError> { Bundle.open(File("a\u0000b")) }
        val folder = bundle(families[0], made.resolve("broken").toFile())
        val manifest = File(folder, "manifest.json")
        val whole = manifest.readBytes()
        for (bytes in listOf(ByteArray(0), whole.copyOf(whole.size / 2), "[]".toByteArray(), "{\"schema\":2,\"schema\":2}".toByteArray(), ByteArray(17 shl 20))) {
            manifest.writeBytes(bytes)
            assertThrows<EdgeVLMException.BundleError> { Bundle.open(folder) }
        }
        manifest.delete()
        manifest.mkdir()
        assertThrows<EdgeVLMException.BundleError> { Bundle.open(folder) }
    }

    /** A real export; tests/test_android.py names it, with ids that Python gives for a question. */
    @Test
    fun `a bundle that Python exported opens and gives its ids`() {
        val place = System.getProperty("edgevlm.bundle")
        assumeTrue(!place.isNullOrEmpty())
        val bundle = Bundle.open(File(place), everything = true)
        val ids = bundle.prompter().encode(listOf(Message.question("How many 😀 are there?\n"))).ids
        assertArrayEquals(System.getProperty("edgevlm.ids").split(",").map { it.toInt() }.toIntArray(), ids)
        for (graph in bundle.manifest.onnx!!.values) assertTrue(bundle.file(graph.file).isFile)
    }
}
