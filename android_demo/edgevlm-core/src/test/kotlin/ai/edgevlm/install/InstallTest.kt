package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import java.io.File
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.CancellationException
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

class InstallTest {
    @TempDir
    lateinit var made: Path

    private val from by lazy { MadeBundle.make(made.resolve("from").toFile()) }
    private val place by lazy { made.resolve("place").toFile() }
    private val target by lazy { File(place, "model") }
    private val work by lazy { File(place, ".model.edgevlm-install") }

    private fun only(vararg names: String) = assertEquals(names.toSet(), place.list()!!.filterNot { it.endsWith("-lock") }.toSet())

    private fun whole(of: File = from) {
        assertEquals(MadeBundle.files(of), MadeBundle.files(target))
        only("model")
        assertEquals("tiny", Installer(target).installed()!!.manifest.model.name)
    }

    @Test
    fun `a folder becomes a bundle, and every byte is told of`() {
        val told = ArrayList<Progress>()
        assertNull(Installer(target).installed())
        Installer(target).install(FolderSource(from)) { told += it }
        whole()
        assertEquals(told.sortedBy { it.done }, told)
        val total = MadeBundle.files(from).keys.filter { it != "manifest.json" }.sumOf { File(from, it).length() }
        assertEquals(setOf(total), told.map { it.total }.toSet())
        assertEquals(total, told.last().done)
        assertEquals(MadeBundle.weights.keys, told.map { it.file }.toSet() intersect MadeBundle.weights.keys)
    }

    @Test
    fun `assets are streams from the beginning`() {
        val asked = ArrayList<String>()
        Installer(target).install(StreamSource("assets") { asked += it; File(from, it).inputStream() })
        whole()
        assertEquals(asked.toSet().size, asked.size)
    }

    @Test
    fun `the same bundle again is only compared, a damaged one is replaced`() {
        Installer(target).install(FolderSource(from))
        Installer(target).install(StreamSource("assets") { if (it == "manifest.json") File(from, it).inputStream() else throw IOException("asked for $it") })
        File(target, "onnx/decoder.bin").writeBytes(ByteArray(1_500_000))
        Installer(target).install(FolderSource(from))
        whole()
    }

    @Test
    fun `another bundle is in the way until it may be replaced`() {
        val newer = MadeBundle.make(made.resolve("newer").toFile(), seed = 2)
        Installer(target).install(FolderSource(from))
        val error = assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(newer)) }
        assertTrue("another bundle" in error.message!!)
        whole()
        Installer(target).install(FolderSource(newer), replace = true)
        whole(newer)
    }

    @Test
    fun `what is no bundle is never touched`() {
        target.mkdirs()
        File(target, "letters.txt").writeText("mine")
        assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(from), replace = true) }
        assertEquals("mine", File(target, "letters.txt").readText())
        target.deleteRecursively()
        target.writeText("a file")
        assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(from), replace = true) }
        assertEquals("a file", target.readText())
    }

    @Test
    fun `a failed replacement keeps the old bundle`() {
        Installer(target).install(FolderSource(from))
        val newer = MadeBundle.make(made.resolve("newer").toFile(), seed = 2)
        File(newer, "decoder.onnx").appendText("x")
        assertThrows<EdgeVLMException.BundleError> { Installer(target).install(FolderSource(newer), replace = true) }
        assertEquals(MadeBundle.files(from), MadeBundle.files(target))
        Installer(target).discard()
        whole()
    }

    @Test
    fun `a replacement that was cut off between its two renames is put back`() {
        Installer(target).install(FolderSource(from))
        assertTrue(target.renameTo(File(place, ".model.edgevlm-old")))
        Installer(target).installed()
        whole()
        from.copyRecursively(File(place, ".model.edgevlm-old"))
        Installer(target).install(FolderSource(from))
        whole()
    }

    @Test
    fun `what an earlier run left is gone on from, and strangers among it removed`() {
        work.mkdirs()
        File(from, "decoder.onnx").copyTo(File(work, "decoder.onnx"))
        File(work, "onnx").mkdirs()
        File(work, "onnx/decoder.bin").writeBytes(File(from, "onnx/decoder.bin").readBytes().copyOf(1_000_000))
        File(work, "onnx/encoder with space é.bin").writeBytes(ByteArray(400_000)) // of another version
        File(work, "old/layer.bin").apply { parentFile.mkdirs() }.writeText("x")
        File(work, "tokenizer.json").mkdirs()
        Files.createSymbolicLink(File(work, "prompt.json").toPath(), File(from, "prompt.json").toPath())
        val asked = HashMap<String, MutableList<Long>>()
        val folder = FolderSource(from)
        val source = object : BundleSource by folder {
            override fun open(name: String, from: Long, cancellation: Cancellation): Part {
                asked.getOrPut(name) { ArrayList() } += from
                return folder.open(name, from, cancellation)
            }
        }
        Installer(target).install(source)
        whole()
        assertFalse("decoder.onnx" in asked)
        assertEquals(listOf(1_000_000L), asked["onnx/decoder.bin"])
        assertEquals(listOf(400_000L, 0L), asked["onnx/encoder with space é.bin"])
        assertFalse(Files.isSymbolicLink(File(target, "prompt.json").toPath()))
    }

    @Test
    fun `a link or a file in the place of the work folder is refused`() {
        place.mkdirs()
        Files.createSymbolicLink(work.toPath(), from.toPath())
        val before = MadeBundle.files(from)
        assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(from)) }
        assertEquals(before, MadeBundle.files(from))
        Installer(target).discard()
        assertEquals(before, MadeBundle.files(from))
        work.writeText("x")
        assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(from)) }
    }

    @Test
    fun `too little room is said before anything is written`() {
        val options = InstallOptions(margin = 1000, space = { 2_000_000 })
        val error = assertThrows<NoSpace> { Installer(target, options).install(FolderSource(from)) }
        val total = MadeBundle.files(from).keys.filter { it != "manifest.json" }.sumOf { File(from, it).length() }
        assertEquals(total + 1000, error.needed)
        assertEquals(2_000_000, error.usable)
        assertTrue(MadeBundle.files(place).isEmpty())
        Installer(target, options.copy(space = { total + 1000 })).install(FolderSource(from))
        whole()
    }

    @Test
    fun `a full disk is a sentence, and room goes on`() {
        val disk = made.resolve("disk").toFile().apply { mkdirs() }
        val mounted = try {
            ProcessBuilder("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.path).redirectErrorStream(true).start().waitFor() == 0
        } catch (_: IOException) {
            false
        }
        assumeTrue(mounted, "needs leave to mount a tmpfs")
        try {
            val full = File(disk, "model")
            assertThrows<NoSpace> { Installer(full).install(FolderSource(from)) }
            val options = InstallOptions(space = { Long.MAX_VALUE })
            val error = assertThrows<EdgeVLMException> { Installer(full, options).install(FolderSource(from)) }
            assertTrue("cannot be written" in error.message!!, error.message)
            assertFalse(full.exists())
            ProcessBuilder("mount", "-o", "remount,size=16m", disk.path).start().waitFor()
            Installer(full, options).install(FolderSource(from))
            assertEquals(MadeBundle.files(from), MadeBundle.files(full))
        } finally {
            ProcessBuilder("umount", disk.path).start().waitFor()
        }
    }

    @Test
    fun `a folder in which nothing may be written`() {
        val error = assertThrows<EdgeVLMException> { Installer(File("/proc/model")).install(FolderSource(from)) }
        assertTrue("choose another folder" in error.message!!, error.message)
        assertThrows<EdgeVLMException> { Installer(File("/proc/no/model")).install(FolderSource(from)) }
        val file = made.resolve("file").toFile().apply { writeText("x") }
        assertThrows<EdgeVLMException> { Installer(File(file, "model")).install(FolderSource(from)) }
    }

    @Test
    fun `two at once are refused`() {
        val began = CountDownLatch(1)
        val go = CountDownLatch(1)
        val first = thread {
            Installer(target).install(FolderSource(from)) {
                began.countDown()
                go.await()
            }
        }
        began.await()
        for (other in listOf(target, File(place, "../place/model"))) {
            val error = assertThrows<EdgeVLMException> { Installer(other).install(FolderSource(from)) }
            assertTrue("already" in error.message!!)
        }
        go.countDown()
        first.join()
        whole()
    }

    @Test
    fun `what the caller throws, and cancelling, leave what was fetched`() {
        class Enough : Exception()
        assertThrows<Enough> { Installer(target).install(FolderSource(from)) { if (it.done > 1_000_000) throw Enough() } }
        only(".model.edgevlm-install")
        val cancellation = Cancellation()
        assertThrows<CancellationException> {
            Installer(target).install(FolderSource(from), cancellation = cancellation) { if (it.done > 2_000_000) cancellation.cancel() }
        }
        assertTrue(File(work, "onnx/decoder.bin").length() > 0)
        assertFalse(File(work, "manifest.json").exists())
        Installer(target).install(FolderSource(from))
        whole()
    }

    @Test
    fun `a read that waits is cancelled`() {
        val reading = CountDownLatch(1)
        val closed = CountDownLatch(1)
        val never = CountDownLatch(1)
        val source = StreamSource("a socket") {
            if (it == "manifest.json") File(from, it).inputStream()
            else object : FilterInputStream(InputStream.nullInputStream()) {
                override fun read(b: ByteArray, off: Int, len: Int): Int {
                    reading.countDown()
                    never.await()
                    return -1
                }

                override fun close() = closed.countDown()
            }
        }
        val cancellation = Cancellation()
        thread {
            reading.await()
            cancellation.cancel()
        }
        assertThrows<CancellationException> { Installer(target).install(source, cancellation = cancellation) }
        closed.await()
        Installer(target).discard()
        only()
    }

    @Test
    fun `hostile manifests`() {
        val info = mapOf("size" to 0, "sha256" to "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        val wrong: List<(MutableMap<String, Any?>) -> Unit> = listOf(
            { it["../out.bin"] = info },
            { it["/tmp/out.bin"] = info },
            { it["a/../../out.bin"] = info },
            { it["con.bin"] = info },
            { it["DECODER.onnx"] = info },
            { it["manifest.json"] = info },
            { it["Manifest.json"] = info },
            { it["x".repeat(256)] = info },
            { it["decoder.onnx/inside"] = info },
            { files -> repeat(5000) { files["f$it"] = info } },
            { it["big.bin"] = info + ("size" to 900_000_000_000_000_000) },
            { it["less.bin"] = info + ("size" to -1) },
            { it["hash.bin"] = info + ("sha256" to "none") },
        )
        for (change in wrong) {
            val hostile = MadeBundle.make(made.resolve("hostile").toFile(), change = change)
            assertThrows<EdgeVLMException> { Installer(target).install(FolderSource(hostile)) }
            assertNull(Installer(target).installed())
        }
        for (text in listOf("", "{", "[]", "{\"schema\": 2}", "<html>")) {
            assertThrows<EdgeVLMException.BundleError> { Installer(target).install(StreamSource("x") { text.byteInputStream() }) }
        }
        val endless = object : InputStream() {
            override fun read(): Int = 'x'.code
        }
        assertThrows<EdgeVLMException.BundleError> { Installer(target).install(StreamSource("x") { endless }) }
        assertFalse(made.resolve("out.bin").toFile().exists())
        val error = assertThrows<EdgeVLMException.BundleError> {
            Installer(target, InstallOptions(largest = 2_000_000)).install(FolderSource(from))
        }
        assertTrue("2000000" in error.message!!)
    }

    @Test
    fun `a program that is killed at any moment leaves the old bundle, the new one, or none`() {
        val newer = MadeBundle.make(made.resolve("newer").toFile(), seed = 2)
        val whole = setOf(MadeBundle.files(from), MadeBundle.files(newer))
        var kills = 0
        for (round in 0 until 8) {
            val source = if (round % 2 == 0) from else newer
            val child = ProcessBuilder(
                File(System.getProperty("java.home"), "bin/java").path, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"),
                "ai.edgevlm.install.KilledKt", source.path, target.path,
            ).redirectErrorStream(true).start()
            val said = child.inputStream.bufferedReader()
            assertEquals("began", said.readLine())
            Thread.sleep(round * 45L)
            child.destroyForcibly().waitFor()
            if (child.exitValue() != 0) kills++
            if (target.exists()) assertTrue(MadeBundle.files(target) in whole)
            Installer(target).installed()
            if (target.exists()) assertTrue(MadeBundle.files(target) in whole)
        }
        assertTrue(kills >= 3, "$kills of 8 were killed in the middle")
        Installer(target).install(FolderSource(newer), replace = true)
        whole(newer)
    }
}
