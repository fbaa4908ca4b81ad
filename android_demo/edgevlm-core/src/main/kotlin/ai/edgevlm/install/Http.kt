package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import java.io.Closeable
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.MalformedURLException
import java.net.URI
import java.net.URISyntaxException
import java.net.URL

/** One request and its answer, without redirects, caches or cookies: what an app replaces to use a client of its own. */
public fun interface Transport {
    /** GET [url]. Throws IOException where there is no answer. */
    public fun get(url: URL, headers: Map<String, String>): Response
}

/** An answer. [header]: its value by name; [body] is empty for statuses that are no success. */
public class Response(
    public val status: Int,
    public val header: (String) -> String?,
    public val body: InputStream,
    private val release: Closeable = body,
) : Closeable {
    override fun close(): Unit = release.close()
}

/** `java.net.HttpURLConnection`. [connectMillis], [readMillis]: how long a connection, and then each byte, is waited for. */
public class UrlTransport(private val connectMillis: Int = 15_000, private val readMillis: Int = 30_000) : Transport {
    override fun get(url: URL, headers: Map<String, String>): Response {
        val connection = url.openConnection() as HttpURLConnection
        connection.instanceFollowRedirects = false
        connection.useCaches = false
        connection.connectTimeout = connectMillis
        connection.readTimeout = readMillis
        for ((name, value) in headers) connection.setRequestProperty(name, value)
        try {
            val status = connection.responseCode
            val body = if (status in 200..299) connection.inputStream else ByteArray(0).inputStream()
            return Response(status, connection::getHeaderField, body, connection::disconnect)
        } catch (error: IOException) {
            connection.disconnect()
            throw error
        }
    }
}

/**
 * How a download behaves.
 *
 * [headers]: sent to the first host alone, as `Authorization`. [cleartext]: take http, too, which anyone on the way can
 * read and, but for the hashes of a manifest that they can also change, change. [tries]: in a row that bring next to
 * nothing; [waitMillis]: before the second, twice as long before each one after.
 */
public data class HttpOptions(
    val headers: Map<String, String> = emptyMap(),
    val cleartext: Boolean = false,
    val tries: Int = 5,
    val waitMillis: Long = 1_000,
)

/** A bundle's files below the address [base], with `manifest.json` beside them. */
public class HttpSource(base: String, private val options: HttpOptions = HttpOptions(), private val transport: Transport = UrlTransport()) : BundleSource {
    private val base: URL = url(if (base.endsWith("/")) base else "$base/")

    override val place: String get() = "${base.protocol}://${base.authority}${base.path}"

    init {
        check(this.base)
        if (base.any { it in "?#" }) throw EdgeVLMException("The address of a bundle has no '?' and no '#': give its folder's.")
        if (options.tries < 1) throw EdgeVLMException("tries is ${options.tries}: it should be 1 or more.")
    }

    override fun open(name: String, from: Long, cancellation: Cancellation): Part {
        val first = url(base.toString() + name.split('/').joinToString("/", transform = ::escaped))
        var at = first
        repeat(MOST_REDIRECTS + 1) {
            cancellation.check()
            val common = mapOf("Accept-Encoding" to "identity") // Android would ask for gzip, and hide the length
            val range = if (from > 0) mapOf("Range" to "bytes=$from-") else emptyMap()
            val own = if (origin(at) == origin(first)) options.headers else emptyMap()
            val response = transport.get(at, own + common + range)
            var part: Part? = null
            try {
                val next = redirect(response, at) ?: return part(response, name, from).also { part = it }
                check(next)
                if (at.protocol == "https" && next.protocol != "https") throw refused("it leads from https to ${next.protocol}")
                at = next
            } finally {
                if (part == null) response.close()
            }
        }
        throw refused("it leads on more than $MOST_REDIRECTS times")
    }

    override fun again(failures: Int, cancellation: Cancellation): Boolean {
        if (failures >= options.tries) return false
        cancellation.sleep(options.waitMillis shl minOf(failures - 1, 10))
        return true
    }

    private fun part(response: Response, name: String, from: Long): Part {
        val length = response.header("Content-Length")?.trim()?.toLongOrNull()?.takeIf { it >= 0 }
        when (val status = response.status) {
            200 -> return Part(0, length, response.body, response)
            206 -> {
                val start = RANGE.find(response.header("Content-Range").orEmpty())?.groupValues?.get(1)?.toLongOrNull()
                if (from > 0 && start == from) return Part(from, length, response.body, response)
                throw IOException("the server answered another range than was asked for")
            }
            416 -> if (from > 0) throw RangeRefused()
            404, 410 -> throw EdgeVLMException.BundleError("$place has no file '$name' (HTTP $status): check the address.")
            401, 403 -> throw EdgeVLMException(
                "$place refuses the file '$name' (HTTP $status): it is private or gated; accept its terms, and give a token as the header Authorization.",
            )
            408, 425, 429, in 500..599 -> throw IOException("HTTP $status")
        }
        throw EdgeVLMException("$place answered HTTP ${response.status} for the file '$name': check the address.")
    }

    private fun redirect(response: Response, at: URL): URL? {
        if (response.status !in setOf(301, 302, 303, 307, 308)) return null
        val to = response.header("Location") ?: throw refused("it leads nowhere")
        return try {
            URL(at, to)
        } catch (_: MalformedURLException) {
            throw refused("it leads to no address")
        }
    }

    private fun check(url: URL) {
        val good = url.protocol == "https" || (url.protocol == "http" && options.cleartext)
        if (!good) throw refused("'${url.protocol}' is not taken, only https")
        if (url.host.isNullOrEmpty() || url.userInfo != null) throw refused("it names no host, or a user")
    }

    private fun refused(why: String) = EdgeVLMException("The address ${place.take(300)} is refused ($why): give another one.")

    public companion object {
        private const val MOST_REDIRECTS = 5
        private val RANGE = Regex("^bytes (\\d+)-")
        private val ID = Regex("[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")

        /**
         * A bundle of the Hugging Face Hub: its [id] "owner/name", and its [revision], a branch, tag or commit. Give a
         * commit where the app has been tried with one: the others change.
         */
        public fun hub(
            id: String,
            revision: String = "main",
            options: HttpOptions = HttpOptions(),
            transport: Transport = UrlTransport(),
            endpoint: String = "https://huggingface.co",
        ): HttpSource {
            if (!ID.matches(id) || ".." in id || id.length > 200) throw EdgeVLMException("'${id.take(200)}' is no id of the Hub: give one as owner/name.")
            if (revision.isEmpty() || revision.length > 200 || revision == "." || revision == "..") {
                throw EdgeVLMException("'${revision.take(200)}' is no revision: give a branch, a tag or a commit.")
            }
            return HttpSource("${endpoint.trimEnd('/')}/$id/resolve/${escaped(revision)}/", options, transport)
        }

        private fun url(text: String): URL = try {
            URI(text).toURL()
        } catch (_: URISyntaxException) {
            throw EdgeVLMException("'${text.take(200)}' is no address: give one that begins with https://.")
        } catch (_: MalformedURLException) {
            throw EdgeVLMException("'${text.take(200)}' is no address: give one that begins with https://.")
        } catch (_: IllegalArgumentException) {
            throw EdgeVLMException("'${text.take(200)}' is no address: give one that begins with https://.")
        }

        private fun origin(url: URL) = Triple(url.protocol, url.host.lowercase(), if (url.port < 0) url.defaultPort else url.port)

        /** A part of a path, percent-encoded but for what RFC 3986 calls unreserved. */
        private fun escaped(part: String): String = buildString {
            for (byte in part.toByteArray(Charsets.UTF_8)) {
                val char = (byte.toInt() and 255).toChar()
                if (char in 'a'..'z' || char in 'A'..'Z' || char in '0'..'9' || char in "-._~") append(char)
                else append('%').append(HEX[char.code shr 4]).append(HEX[char.code and 15])
            }
        }

        private const val HEX = "0123456789ABCDEF"
    }
}

/** A file has no such byte: what is there of it is longer than the file. */
internal class RangeRefused : IOException("the server has no such range")
