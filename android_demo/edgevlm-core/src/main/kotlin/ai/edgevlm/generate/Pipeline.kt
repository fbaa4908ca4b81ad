package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.Bundle
import ai.edgevlm.text.Message
import ai.edgevlm.text.Prompter
import java.io.File

/**
 * The one loop: pictures and a question in, text out as it comes, with the time of each stage.
 *
 * Each question starts a new conversation, but what it shares with the last is not computed again where [reuse] says
 * so: the prompt's beginning, and pictures.
 */
internal class Pipeline(val bundle: Bundle, val runtime: Runtime, val pictures: PictureCache, reuse: Boolean) {
    val prompter: Prompter = bundle.prompter()
    private val spec = bundle.manifest.spec
    private val held = Held(runtime.decoder, spec, reuse)

    fun ask(given: List<Given>, messages: List<Message>, options: AskOptions, whenWhole: (Answer) -> Unit = {}): AnswerStream {
        runtime.checkOpen()
        val start = System.nanoTime()
        val prompt = prepare(bundle, prompter, pictures, given, messages, options)
        bundle.promptSpec.chat.roles[messages.last().role]?.places?.let {
            throw EdgeVLMException.Unsupported(
                "The role '${messages.last().role}' asks for ${it.name.lowercase()}, which this SDK does not read from the " +
                    "decoder's states: ask in words.",
            )
        }
        val timings = Timings(seconds(start), imageTokens = prompt.imageTokens, promptTokens = prompt.ids.size)
        val cancellation = Cancellation()
        return AnswerStream(runtime, cancellation, whenWhole) { done -> done(run(prompt, options, timings, cancellation)) }
    }

    private suspend fun SequenceScope<String>.run(
        prompt: Prompt,
        options: AskOptions,
        prepared: Timings,
        cancellation: Cancellation,
    ): Answer = try {
        tell(prompt, options, prepared, cancellation)
    } catch (error: Throwable) {
        held.forget()
        throw error
    }

    private suspend fun SequenceScope<String>.tell(
        prompt: Prompt,
        options: AskOptions,
        prepared: Timings,
        cancellation: Cancellation,
    ): Answer {
        val ids = ArrayList<Int>()
        var timings = prepared
        var start = System.nanoTime()
        val sampler = Sampler(options, prompt.ids, spec.vocabSize)
        var token = try {
            val length = held.length(prompt)
            timings = timings.copy(reusedTokens = length)
            val features = pictures.features(runtime.encoder, prompt, prompt.viewsBefore(length), cancellation)
            timings = timings.copy(encode = seconds(start))
            start = System.nanoTime()
            choose(sampler, held.read(prompt, length, features, ids, cancellation))
        } catch (_: Stopped) {
            return Answer("", emptyList(), Finish.CANCELLED, timings)
        }
        timings = timings.copy(prefill = seconds(start))
        val stops = if (options.ignoreStop) emptySet() else bundle.promptSpec.stopIds.toSet()
        val reader = Reader(prompter.stream(), options.stop)
        ids += token
        val text = StringBuilder()
        var decode = 0.0
        var piece: String
        var stopped: Boolean
        while (true) {
            stopped = token in stops
            piece = if (stopped) "" else reader.push(token)
            stopped = stopped || reader.stopped
            if (stopped || ids.size == prompt.maxTokens || cancellation.requested) break
            if (piece.isNotEmpty()) {
                text.append(piece)
                yield(piece)
                piece = ""
            }
            start = System.nanoTime()
            try {
                token = choose(sampler, runtime.decoder.forward(runtime.decoder.embed(intArrayOf(token)), null, cancellation))
            } catch (_: Stopped) {
                break
            } finally {
                decode += seconds(start)
            }
            ids += token
        }
        timings = timings.copy(decode = decode, answerTokens = ids.size, peakMemory = peakMemory())
        val last = piece + reader.finish()
        if (last.isNotEmpty()) {
            text.append(last)
            yield(last)
        }
        val finish = if (stopped) Finish.STOP else if (ids.size == prompt.maxTokens) Finish.LENGTH else Finish.CANCELLED
        val (boxes, points) = bundle.promptSpec.grounding.takeIf { prompt.frames.size == 1 }
            ?.find(prompter.decode(ids.toIntArray(), special = true), prompt.frames[0]) ?: (emptyList<Nothing>() to emptyList())
        return Answer(text.toString(), ids.toList(), finish, timings, boxes, points)
    }

    private fun choose(sampler: Sampler, logits: FloatArray): Int {
        if (logits.any { it.isNaN() }) {
            throw EdgeVLMException.RuntimeFailed("The engine gave logits that are not numbers: export the bundle again.")
        }
        return sampler.choose(logits)
    }

    private companion object {
        fun seconds(start: Long): Double = (System.nanoTime() - start) / 1e9

        /** What the system reports; null where it does not. */
        fun peakMemory(): Long? = try {
            File("/proc/self/status").useLines { lines ->
                lines.firstOrNull { it.startsWith("VmHWM:") }?.filter { it in '0'..'9' }?.toLong()?.times(1024)
            }
        } catch (_: java.io.IOException) {
            null
        }
    }
}
