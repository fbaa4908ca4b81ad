package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.URLDecoder
import java.nio.file.Path
import java.util.concurrent.CancellationException
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicInteger
import kotlin.concurrent.thread
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

class HttpTest {
    @TempDir
    lateinit var made: Path

    private val from by lazy { MadeBundle.make(made.resolve("from").toFile()) }
    private val target by lazy { made.resolve("place/model").toFile() }
    private val pool = Executors.newCachedThreadPool()
    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
    private val base = "http://127.0.0.1:${server.address.port}"
    private val options = HttpOptions(cleartext = true, waitMillis = 5)
    private val fast = InstallOptions(slowMillis = 300, slowest = 1000)

    /** "name from" of each request. */
    private val asked = CopyOnWriteArrayList<String>()

    /** What happens to a request instead of its answer; true: it was answered. */
    private var fault: (HttpExchange, String, Int) -> Boolean = { _, _, _ -> false }

    @BeforeEach
    fun start() {
        val times = HashMap<String, AtomicInteger>()
        server.executor = pool
        server.createContext("/") { exchange ->
            exchange.use {
                val name = URLDecoder.decode(exchange.requestURI.rawPath.substringAfter("/b/").replace("+", "%2B"), "UTF-8")
                asked += "$name ${exchange.requestHeaders.getFirst("Range")?.removePrefix("bytes=")?.removeSuffix("-") ?: 0}"
                val number = synchronized(times) { times.getOrPut(name) { AtomicInteger() } }.incrementAndGet()
                try {
                    if (!fault(exchange, name, number)) answer(exchange, name)
                } catch (_: IOException) {
                    // the client has gone
                }
            }
        }
        server.start()
    }

    @AfterEach
    fun stop() {
        server.stop(0)
        pool.shutdownNow()
    }

    private fun HttpExchange.use(act: () -> Unit) = try {
        act()
    } finally {
        close()
    }

    private fun answer(exchange: HttpExchange, name: String) {
        val file = File(from, name)
        if (!file.isFile) return exchange.sendResponseHeaders(404, -1)
        val bytes = file.readBytes()
        val start = exchange.requestHeaders.getFirst("Range")?.removePrefix("bytes=")?.removeSuffix("-")?.toInt() ?: 0
        if (start > 0) exchange.responseHeaders.set("Content-Range", "bytes $start-${bytes.size - 1}/${bytes.size}")
        exchange.sendResponseHeaders(if (start > 0) 206 else 200, if (bytes.size == start) -1 else bytes.size - start.toLong())
        if (bytes.size > start) exchange.responseBody.write(bytes, start, bytes.size - start)
    }

    private fun HttpExchange.redirect(to: String): Boolean {
        responseHeaders.set("Location", to)
        sendResponseHeaders(302, -1)
        return true
    }

    private fun source(path: String = "/b/", http: HttpOptions = options) = HttpSource(base + path, http)

    private fun install(source: BundleSource = source()) = Installer(target, fast).install(source)

    private fun whole() = assertEquals(MadeBundle.files(from), MadeBundle.files(target))

    private fun fails(source: BundleSource = source()): String {
        val error = assertThrows<EdgeVLMException> { install(source) }
        assertFalse(target.exists())
        assertNull(Installer(target).installed())
        return error.message!!
    }

    private val large = "onnx/decoder.bin"

    @Test
    fun `a bundle is downloaded, each file once`() {
        install()
        whole()
        assertEquals(asked.toSet().size, asked.size)
        assertTrue("onnx/encoder with space é.bin 0" in asked)
    }

    @Test
    fun `a connection that is cut is gone on from`() {
        fault = { exchange, name, number ->
            (name == large && number <= 3).also { cut ->
                if (!cut) return@also
                val bytes = File(from, name).readBytes()
                val start = exchange.requestHeaders.getFirst("Range")?.removePrefix("bytes=")?.removeSuffix("-")?.toInt() ?: 0
                if (start > 0) exchange.responseHeaders.set("Content-Range", "bytes $start-${bytes.size - 1}/${bytes.size}")
                exchange.sendResponseHeaders(if (start > 0) 206 else 200, bytes.size - start.toLong())
                exchange.responseBody.write(bytes, start, 400_000)
                exchange.responseBody.flush()
            }
        }
        install()
        whole()
        val starts = asked.filter { it.startsWith("$large ") }.map { it.substringAfterLast(' ').toInt() }
        assertEquals(4, starts.size)
        assertEquals(starts.sorted(), starts)
        assertTrue(starts.last() > 800_000, "$starts")
    }

    @Test
    fun `a connection that is always cut at once ends after its tries, and the next run goes on`() {
        fault = { exchange, name, _ ->
            (name == large).also {
                if (it) {
                    exchange.sendResponseHeaders(200, 1_500_000)
                    exchange.responseBody.write(File(from, name).readBytes(), 0, 10)
                    exchange.responseBody.flush()
                }
            }
        }
        val message = fails()
        assertTrue("cut" in message || "end" in message || "EOF" in message, message)
        assertEquals(options.tries, asked.count { it.startsWith("$large ") })
        fault = { _, _, _ -> false }
        val before = asked.size
        install()
        whole()
        assertFalse(asked.drop(before).any { it.startsWith("tokenizer.json") })
    }

    @Test
    fun `a wrong byte is found, and fetched no more than said`() {
        fault = { exchange, name, _ ->
            (name == large).also {
                if (it) {
                    val bytes = File(from, name).readBytes().also { all -> all[77_777] = (all[77_777] + 1).toByte() }
                    exchange.sendResponseHeaders(200, bytes.size.toLong())
                    exchange.responseBody.write(bytes)
                }
            }
        }
        assertTrue("sha256" in fails())
        assertEquals(1, asked.count { it.startsWith("$large ") })
        fault = { _, _, _ -> false }
        install()
        whole()
    }

    @Test
    fun `wrong lengths`() {
        for (length in listOf(1_499_999L, 1_500_001L, 1L shl 50)) {
            fault = { exchange, name, _ -> (name == large).also { if (it) exchange.sendResponseHeaders(200, length) } }
            assertTrue("1500000" in fails())
        }
        fault = { exchange, name, _ -> // longer than said, in chunks
            (name == large).also {
                if (it) {
                    exchange.sendResponseHeaders(200, 0)
                    while (true) exchange.responseBody.write(ByteArray(1 shl 16))
                }
            }
        }
        assertTrue("longer" in fails())
        fault = { exchange, name, _ -> (name == "manifest.json").also { if (it) exchange.sendResponseHeaders(200, 1L shl 40) } }
        assertTrue("longer" in fails())
    }

    @Test
    fun `what is missing or private is not tried again`() {
        for ((status, word) in mapOf(404 to "no file", 401 to "token", 403 to "token", 418 to "418")) {
            asked.clear()
            fault = { exchange, name, _ -> (name == large).also { if (it) exchange.sendResponseHeaders(status, -1) } }
            assertTrue(word in fails())
            assertEquals(1, asked.count { it.startsWith("$large ") })
        }
    }

    @Test
    fun `what may pass is tried again`() {
        fault = { exchange, _, number -> (number <= 2).also { if (it) exchange.sendResponseHeaders(if (number == 1) 500 else 429, -1) } }
        install()
        whole()
        assertEquals(3, asked.count { it.startsWith("manifest.json ") })
        target.deleteRecursively()
        fault = { exchange, _, _ -> exchange.sendResponseHeaders(503, -1).let { true } }
        assertTrue("503" in fails())
    }

    @Test
    fun `a server without ranges, and one that refuses them`() {
        for (status in listOf(200, 416)) {
            val part = made.resolve("place/.model.edgevlm-install/$large").toFile()
            part.parentFile.mkdirs()
            part.writeBytes(File(from, large).readBytes().copyOf(900_000))
            fault = { exchange, name, _ ->
                val ranged = exchange.requestHeaders.getFirst("Range") != null
                (ranged && name == large).also {
                    if (!it) return@also
                    exchange.sendResponseHeaders(status, if (status == 200) 1_500_000 else -1)
                    if (status == 200) exchange.responseBody.write(File(from, name).readBytes())
                }
            }
            install()
            whole()
            target.deleteRecursively()
        }
    }

    @Test
    fun `another range than was asked for is no part of a file`() {
        val part = made.resolve("place/.model.edgevlm-install/$large").toFile()
        part.parentFile.mkdirs()
        part.writeBytes(File(from, large).readBytes().copyOf(900_000))
        fault = { exchange, name, number ->
            (name == large && number == 1).also {
                if (!it) return@also
                exchange.responseHeaders.set("Content-Range", "bytes 5-1499999/1500000")
                exchange.sendResponseHeaders(206, 1_499_995)
            }
        }
        install()
        whole()
    }

    @Test
    fun `a slow drip is cut off`() {
        fault = { exchange, name, _ ->
            (name == large).also {
                if (!it) return@also
                exchange.sendResponseHeaders(200, 1_500_000)
                while (true) {
                    exchange.responseBody.write(1)
                    exchange.responseBody.flush()
                    Thread.sleep(20)
                }
            }
        }
        assertTrue("a second" in fails(source(http = options.copy(tries = 2))))
    }

    @Test
    fun `silence is cut off, and cancelled`() {
        fault = { exchange, name, _ ->
            (name == large).also {
                if (!it) return@also
                exchange.sendResponseHeaders(200, 1_500_000)
                exchange.responseBody.write(ByteArray(1000))
                exchange.responseBody.flush()
                Thread.sleep(20_000)
            }
        }
        assertTrue("timed out" in fails(HttpSource("$base/b/", options.copy(tries = 1), UrlTransport(readMillis = 200))))
        val cancellation = Cancellation()
        val reached = CountDownLatch(1)
        thread {
            reached.await()
            Thread.sleep(100)
            cancellation.cancel()
        }
        val began = System.nanoTime()
        assertThrows<CancellationException> {
            Installer(target, fast).install(source(), cancellation = cancellation) { if (it.file == large) reached.countDown() }
        }
        assertTrue((System.nanoTime() - began) / 1_000_000 < 8_000, "cancelled late")
    }

    @Test
    fun `a redirect to another host is followed without the first one's headers`() {
        val seen = CopyOnWriteArrayList<String?>()
        val other = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        other.executor = pool
        other.createContext("/") { exchange ->
            seen += exchange.requestHeaders.getFirst("Authorization")
            exchange.use { answer(exchange, exchange.requestURI.query) }
        }
        other.start()
        val own = CopyOnWriteArrayList<String?>()
        fault = { exchange, name, _ ->
            own += exchange.requestHeaders.getFirst("Authorization")
            (name == large).also { if (it) exchange.redirect("http://127.0.0.1:${other.address.port}/cdn?$name") }
        }
        try {
            install(source(http = options.copy(headers = mapOf("Authorization" to "Bearer secret"))))
        } finally {
            other.stop(0)
        }
        whole()
        assertEquals(listOf<String?>(null), seen)
        assertEquals(setOf<String?>("Bearer secret"), own.toSet())
    }

    @Test
    fun `redirects that go round, away or nowhere are refused`() {
        for (to in listOf("$base/b/$large", "ftp://127.0.0.1/x", "file:///etc/passwd", "jar:file:/x!/y", "http://user@127.0.0.1/x", "http:///x", "nonsense://x")) {
            asked.clear()
            fault = { exchange, name, _ -> name == large && exchange.redirect(to) }
            assertTrue("refused" in fails(), to)
            assertTrue(asked.count { it.startsWith("$large ") } <= 6)
        }
        fault = { exchange, name, _ -> (name == large).also { if (it) exchange.sendResponseHeaders(302, -1) } }
        assertTrue("nowhere" in fails())
        fault = { exchange, name, number -> name == large && number <= 3 && exchange.redirect("decoder.bin?again=$number") }
        asked.clear()
    }

    /** Answers by address, of any scheme. */
    private fun played(routes: Map<String, Response>) = Transport { url, _ ->
        routes[url.toString()] ?: Response(200, { null }, ByteArrayInputStream(File(from, url.path.substringAfter("/resolve/abc/").replace("%20", " ").replace("%C3%A9", "é")).readBytes()))
    }

    private fun to(place: String) = Response(302, { if (it == "Location") place else null }, ByteArrayInputStream(ByteArray(0)))

    @Test
    fun `https is the rule`() {
        for (address in listOf("http://a.example/b", "ftp://a.example/b", "a.example/b", "file:///b", "https:///b", "https://u:p@a.example/b", "https://a.example/?q", "https://a b/")) {
            assertThrows<EdgeVLMException>(address) { HttpSource(address) }
        }
        val first = "https://a.example/resolve/abc/manifest.json"
        for (cleartext in listOf(false, true)) {
            val source = HttpSource("https://a.example/resolve/abc", HttpOptions(cleartext = cleartext), played(mapOf(first to to("http://a.example/m"))))
            assertTrue("http" in fails(source))
        }
    }

    @Test
    fun `the Hub's addresses`() {
        val base = "https://huggingface.co/edge/tiny-vlm/resolve/abc"
        val content = File(from, "manifest.json").readBytes()
        val cdn = Response(200, { null }, ByteArrayInputStream(content))
        val routes = mapOf("$base/manifest.json" to to("https://cdn.example/x?sig=1"), "https://cdn.example/x?sig=1" to cdn)
        install(HttpSource.hub("edge/tiny-vlm", "abc", transport = played(routes)))
        whole()
        for (id in listOf("tiny", "a/b/c", "../x", "a/..", "a b/c", "a/b?c", "é/x", "")) assertThrows<EdgeVLMException>(id) { HttpSource.hub(id) }
        assertThrows<EdgeVLMException> { HttpSource.hub("a/b", "") }
        assertThrows<EdgeVLMException> { HttpSource.hub("a/b", "..") }
        assertEquals("https://huggingface.co/a/b/resolve/refs%2Fpr%2F1/", HttpSource.hub("a/b", "refs/pr/1").place)
    }

    @Test
    fun `no server`() {
        server.stop(0)
        assertTrue("refused" in fails(source(http = options.copy(tries = 2))))
    }
}
