package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLM
import ai.edgevlm.EdgeVLMException
import ai.edgevlm.LoadOptions
import ai.edgevlm.generate.Answer
import ai.edgevlm.generate.AskOptions
import ai.edgevlm.generate.Chat
import ai.edgevlm.generate.Finish
import ai.edgevlm.generate.Model
import ai.edgevlm.image.RgbImage
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.concurrent.thread

/** What `tests/android_answers.py` wrote: bundles, questions, and Python's answers. */
class AnswersTest {
    private val folder = System.getProperty("edgevlm.answers")?.let(::File)
    private val said by lazy { Given.map(Given.json(File(folder, "answers.json"))) }
    private val pictures by lazy {
        Given.list(said["pictures"]).mapIndexed { number, size ->
            val (width, height) = Given.list(size).map { (it as Long).toInt() }
            RgbImage(width, height, File(folder, "$number.rgb").readBytes())
        }
    }
    private val models by lazy { Given.list(said["models"]).map(Given::map) }

    @TestFactory
    fun `tokens are Python's`(): List<DynamicTest> {
        assumeTrue(folder != null, "needs -Dedgevlm.answers")
        return models.flatMap { model ->
            listOf("alone", "reused", "sampled", "chat").map { kind ->
                dynamicTest("${File(model["bundle"] as String).name} $kind") { same(model, kind) }
            }
        }
    }

    private fun same(model: Map<String, Any?>, kind: String) {
        val options = LoadOptions(threads = 1, portable = model["portable"] as Boolean, reuse = kind == "reused" || kind == "chat")
        val wrong = ArrayList<String>()
        val seconds = DoubleArray(8)
        EdgeVLM.load(File(model["bundle"] as String), options).use { loaded ->
            val chat = loaded.chat()
            val rows = Given.list(model[kind]).map(Given::map)
            assertTrue(rows.isNotEmpty() || kind == "sampled")
            for (row in rows) {
                val answer = if (kind == "chat") ask(chat, row) else ask(loaded, row)
                wrong += differences(row, answer)
                if (kind == "chat") chat.rewind((row["rewind"] as Long).toInt())
                val time = answer.timings
                listOf(time.preprocess, time.encode, time.prefill, time.decode).forEachIndexed { i, it -> seconds[i] += it }
                Given.list(row["seconds"]).forEachIndexed { i, it -> seconds[4 + i] += it as Double }
            }
        }
        val times = seconds.map { (it * 1000).toInt() }
        println("${model["bundle"]} $kind: ms of each stage ${times.take(4)}, Python ${times.drop(4)}")
        assertTrue(wrong.isEmpty()) { wrong.joinToString("\n") }
    }

    private fun ask(model: Model, row: Map<String, Any?>): Answer =
        model.answer(row["question"] as String, chosen(row), Given.options(row))

    private fun ask(chat: Chat, row: Map<String, Any?>): Answer {
        val stream = chat.ask(row["question"] as String, chosen(row), Given.options(row))
        val pieces = StringBuilder()
        val answer = stream.collect { pieces.append(it) }
        assertEquals(answer.text, pieces.toString())
        assertEquals((row["used"] as Long).toInt(), chat.tokensUsed)
        return answer
    }

    private fun chosen(row: Map<String, Any?>) = Given.list(row["pictures"]).map { pictures[(it as Long).toInt()] }

    private fun differences(row: Map<String, Any?>, answer: Answer): List<String> {
        val ids = Given.list(row["ids"]).map { (it as Long).toInt() }
        val first = (0 until maxOf(ids.size, answer.ids.size)).firstOrNull { ids.getOrNull(it) != answer.ids.getOrNull(it) }
        val found = ArrayList<String>()
        val margin = first?.let { Given.list(row["margins"]).getOrNull(it) }
        if (first != null) found += "${row["question"]}: token $first differs, where Python's margin is $margin"
        if (answer.timings.promptTokens.toLong() != row["prompt_tokens"]) found += "${row["question"]}: another prompt"
        if (answer.timings.reusedTokens.toLong() != row["reused_tokens"]) {
            found += "${row["question"]}: ${answer.timings.reusedTokens} tokens were reused, Python's ${row["reused_tokens"]}"
        }
        if (first == null && answer.text != row["text"]) found += "${row["question"]}: '${answer.text}' is not '${row["text"]}'"
        if (first == null && answer.finish.name.lowercase() != row["finish"]) found += "${row["question"]}: ${answer.finish}"
        return found
    }

    private fun loaded(name: String = "smolvlm"): Model {
        assumeTrue(folder != null, "needs -Dedgevlm.answers")
        return EdgeVLM.load(File(folder, name), LoadOptions(threads = 1))
    }

    private val long = AskOptions(maxTokens = 64, ignoreStop = true)

    @Test
    fun `an answer can be cancelled while another thread computes it`() {
        loaded().use { model ->
            val whole = model.answer("What is this?", pictures.take(1), long)
            val stream = model.ask("What is this?", pictures.take(1), long)
            stream.next()
            stream.cancel()
            assertEquals(Finish.CANCELLED, stream.answer.finish)
            assertTrue(whole.text.startsWith(stream.answer.text) && stream.answer.ids.size < whole.ids.size)
            val late = model.ask("What is this?", pictures.take(1), long)
            late.cancel()
            assertEquals("", late.answer.text)
            repeat(20) { pause ->
                val other = model.ask("Compare.", pictures.take(2), long)
                val canceller = thread { Thread.sleep(pause * 2L); other.cancel() }
                val answer = other.answer
                canceller.join()
                assertTrue(answer.finish != Finish.STOP)
            }
            assertEquals(whole.ids, model.answer("What is this?", pictures.take(1), long).ids)
        }
    }

    @Test
    fun `a closed model, chat or stream says so`() {
        val model = loaded()
        val chat = model.chat()
        val stream = model.ask("What is this?", pictures.take(1), long)
        stream.next()
        stream.close()
        assertThrows<EdgeVLMException> { stream.answer }
        chat.close()
        chat.close()
        assertThrows<EdgeVLMException.Closed> { chat.ask("What is this?") }
        val late = model.ask("What is this?", pictures.take(1), long)
        model.close()
        model.close()
        assertThrows<EdgeVLMException.Closed> { late.answer }
        assertThrows<EdgeVLMException.Closed> { model.answer("What is this?") }
    }

    @Test
    fun `threads share a model, each with its own answer`() {
        loaded().use { model ->
            val wanted = (0..1).map { model.answer("What is this?", listOf(pictures[it]), long).ids }
            val slow = model.ask("What is this?", pictures.take(1), long)
            slow.next()
            val failed = CopyOnWriteArrayList<Throwable>()
            val all = (0..1).map { number ->
                thread {
                    try {
                        repeat(5) { assertEquals(wanted[number], model.answer("What is this?", listOf(pictures[number]), long).ids) }
                    } catch (error: Throwable) {
                        failed += error
                    }
                }
            }
            all.forEach { it.join() }
            assertEquals(emptyList<Throwable>(), failed)
            assertEquals(wanted[0], slow.answer.ids)
        }
    }

    @Test
    fun `a hundred questions take no more memory than ten`() {
        loaded().use { model ->
            fun ask(count: Int) = repeat(count) { model.answer("What is number $it?", listOf(pictures[it % pictures.size]), long) }
            ask(30)
            val before = used()
            ask(100)
            val after = used()
            println("heap ${before.first} to ${after.first}, resident ${before.second} to ${after.second} bytes")
            assertTrue(after.first - before.first < 4 shl 20) { "heap grew from ${before.first} to ${after.first}" }
            assertTrue(after.second - before.second < 48 shl 20) { "from ${before.second} to ${after.second} resident" }
        }
    }

    private fun used(): Pair<Long, Long> {
        repeat(3) {
            System.gc()
            Thread.sleep(50)
        }
        val status = File("/proc/self/status").readLines().firstOrNull { it.startsWith("VmRSS:") }
        val resident = status?.filter { it in '0'..'9' }?.toLong()?.times(1024) ?: 0
        return Runtime.getRuntime().let { it.totalMemory() - it.freeMemory() } to resident
    }

    @Test
    fun `stop strings end an answer before them`() {
        loaded().use { model ->
            val whole = model.answer("What is this?", pictures.take(1), long).text
            val stop = whole.substring(whole.length / 2, whole.length / 2 + 3)
            val answer = model.answer("What is this?", pictures.take(1), long.copy(stop = listOf("never", stop)))
            assertEquals(whole.substring(0, whole.indexOf(stop)), answer.text)
            assertEquals(Finish.STOP, answer.finish)
        }
    }

    @Test
    fun `a context that is full says by how much`() {
        loaded().use { model ->
            val error = assertThrows<EdgeVLMException.ContextFull> { model.answer("word ".repeat(9000)) }
            assertTrue(error.needed > error.limit)
        }
    }

    @Test
    fun `damaged graphs and other shapes are refused`(@TempDir home: File) {
        assumeTrue(folder != null, "needs -Dedgevlm.answers")
        val copy = File(home, "bundle")
        File(folder, "smolvlm").copyRecursively(copy)
        val graph = File(copy, "onnx").listFiles()!!.first { it.name.startsWith("vision") && it.name.endsWith(".onnx") && "portable" !in it.name }
        val whole = graph.readBytes()
        graph.writeBytes(whole.copyOf(whole.size / 2))
        assertThrows<EdgeVLMException.BundleError> { EdgeVLM.load(copy).close() }
        Given.resign(copy, graph)
        assertThrows<EdgeVLMException.RuntimeFailed> { EdgeVLM.load(copy).close() }
        graph.writeBytes(ByteArray(1000) { it.toByte() })
        Given.resign(copy, graph)
        assertThrows<EdgeVLMException.RuntimeFailed> { EdgeVLM.load(copy).close() }
        graph.writeBytes(whole)
        Given.resign(copy, graph)
        val manifest = File(copy, "manifest.json")
        val text = manifest.readText()
        manifest.writeText(text.replace("\"image_features\"", "\"other_features\""))
        assertThrows<EdgeVLMException> { EdgeVLM.load(copy).close() }
        manifest.writeText(text)
        File(copy, "onnx").listFiles()!!.filter { "decoder" in it.name && it.name.endsWith(".onnx") }.forEach {
            it.writeBytes(whole) // a graph, and another one's
            Given.resign(copy, it)
        }
        assertThrows<EdgeVLMException.RuntimeFailed> { EdgeVLM.load(copy).close() }
    }
}
