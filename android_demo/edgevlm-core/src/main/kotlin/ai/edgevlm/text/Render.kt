package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException

/** One part of a message. */
public sealed interface Item {
    public data class Text(val text: String) : Item

    /** A model's answer of before: [ids] without the one that ended it, and [written], their text with special tokens. */
    public class Answer(public val text: String, public val ids: IntArray, public val written: String) : Item

    public object Image : Item

    /** [likeText]: a message that begins with it begins as one with text does. */
    public data class Video(val likeText: Boolean) : Item
}

/** One message of a conversation. */
public data class Message(val role: String, val items: List<Item>) {
    public companion object {
        /** A question with its pictures before it. */
        public fun question(text: String, pictures: Int = 0): Message =
            Message("user", List(pictures) { Item.Image } + Item.Text(text))
    }
}

/** A piece of a rendered conversation. */
internal sealed interface Rendered {
    /** Text of the spec, in which special tokens are recognized. */
    class Control(val text: String) : Rendered

    /** Text of the user, in which special tokens are read as plain text. */
    class User(val text: String) : Rendered

    /** An answer of before, in the tokens that the model wrote. */
    class Answer(val ids: IntArray) : Rendered

    /** The place of the conversation's next picture. */
    object Picture : Rendered
}

internal const val MOST_TEXT: Int = 4 shl 20

internal fun checkLength(characters: Long) {
    if (characters > MOST_TEXT) {
        throw EdgeVLMException(
            "The conversation has more than $MOST_TEXT characters, more than any model reads: shorten it.",
        )
    }
}

/** Messages in a chat format, piece by piece: Python's `edgevlm.inputs.render`. */
internal class Renderer(private val chat: Chat) {
    private val out = ArrayList<Rendered>()

    fun render(messages: List<Message>, pictures: Int, addGenerationPrompt: Boolean): List<Rendered> {
        check(messages, pictures)
        control(chat.prefix)
        if (messages[0].role != "system") control(chat.defaultSystem)
        val system = ArrayList<Rendered>()
        messages.forEachIndexed { place, message ->
            val around = around(message, place)
            var items = message.items
            if (chat.imagesFirst) items = items.sortedBy { !it.isPicture() }
            val first = items[0]
            val asImage = first == Item.Image || (first is Item.Video && !first.likeText)
            val opening = if (asImage) around.openImage ?: "" else around.openText
            val parts = items(message.role, around, items)
            if (message.role == "system" && chat.system == Chat.IN_FIRST_USER) {
                system += Rendered.Control(opening)
                system += parts
                system += Rendered.Control(around.close)
                return@forEachIndexed
            }
            if (first is Item.Answer && items.size == 1 && asWritten(first, opening, parts)) {
                control(chat.generation)
                out += Rendered.Answer(first.ids)
                control(around.close)
                return@forEachIndexed
            }
            control(opening)
            if (message.role == "system" && place == 0) control(chat.systemMark)
            out += system
            system.clear()
            out += parts
            control(around.close)
        }
        if (addGenerationPrompt) control(chat.generation)
        return out
    }

    private fun check(messages: List<Message>, pictures: Int) {
        if (messages.isEmpty()) throw EdgeVLMException("The conversation is empty: ask at least one question.")
        messages.forEachIndexed { number, message ->
            if (message.items.isEmpty()) {
                throw EdgeVLMException("Message ${number + 1} is malformed: expected a role and at least one text or image.")
            }
            for (item in message.items) {
                val text = item.text() ?: continue
                checkLength(text.codePointCount(0, text.length).toLong())
                if (text.isBroken()) {
                    throw EdgeVLMException("The question is not valid Unicode text: type it again.")
                }
            }
        }
        val found = messages.sumOf { message -> message.items.count { it.isPicture() } }
        if (found != pictures) {
            throw EdgeVLMException(
                "The conversation has $found image items for $pictures pictures: give one picture for each.",
            )
        }
        val most = chat.pictures
        if (most != null && pictures > most) {
            throw EdgeVLMException.Unsupported(
                "This model looks at $most picture${if (most > 1) "s" else ""} at a time, and was given $pictures: ask about " +
                    "each by itself.",
            )
        }
    }

    private fun around(message: Message, place: Int): RoleText {
        val around = chat.roles[message.role] ?: throw EdgeVLMException(
            "The role '${message.role.take(80)}' is unknown to this model: use ${chat.roles.keys.sorted().joinToString(", ")}.",
        )
        if (message.role == "system" && place > 0 && chat.systemFirst) {
            throw EdgeVLMException(
                "This model takes a system message at the beginning alone: put it first, or leave it out.",
            )
        }
        if (around.openImage == null && message.items.any { it.isPicture() }) {
            throw EdgeVLMException.Unsupported(
                "The role '${message.role.take(80)}' takes no pictures in this model: put them into a user's message.",
            )
        }
        return around
    }

    private fun items(role: String, around: RoleText, items: List<Item>): List<Rendered> {
        val made = ArrayList<Rendered>()
        val last = items.size - 1
        val imageAfter = around.imageAfter ?: chat.imageAfter
        val trims = around.trim || (chat.trim && !(chat.trimEach && role == "system"))
        items.forEachIndexed { place, item ->
            if (place > 0) made += Rendered.Control(chat.join)
            when (item) {
                is Item.Video -> made += Rendered.Picture
                is Item.Image -> {
                    if (place > 0) made += Rendered.Control(chat.imageBefore)
                    made += Rendered.Picture
                    if (place != last) made += Rendered.Control(imageAfter)
                }
                else -> {
                    var text = item.text()!!
                    if (trims && (chat.trimEach || place == 0)) text = text.stripStart()
                    if (trims && (chat.trimEach || place == last)) text = text.stripEnd()
                    if (place > 0 && !items[place - 1].isPicture()) made += Rendered.Control(chat.textJoin)
                    made += Rendered.Control(chat.textOpen)
                    made += Rendered.User(text)
                    made += Rendered.Control(chat.textClose)
                }
            }
        }
        return made
    }

    /** Whether an answer of before is written as the model wrote it, behind the words that asked for it. */
    private fun asWritten(answer: Item.Answer, opening: String, parts: List<Rendered>): Boolean {
        val written = StringBuilder(opening)
        for (part in parts) {
            when (part) {
                is Rendered.Control -> written.append(part.text)
                is Rendered.User -> written.append(part.text)
                else -> Unit
            }
        }
        return written.toString() == chat.generation + answer.written
    }

    private fun control(text: String) {
        out += Rendered.Control(text)
    }

    private fun Item.isPicture(): Boolean = this == Item.Image || this is Item.Video

    private fun Item.text(): String? = when (this) {
        is Item.Text -> text
        is Item.Answer -> text
        else -> null
    }
}
