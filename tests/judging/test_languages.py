"""The language of a text, by its script and its function words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.judging.languages import FEWEST_WORDS, UNKNOWN, function_words, known_languages, language_of

TEXTS = {
    "en": (
        "I'm sorry, but I can't help with that.",
        "Sure! Here is how you boil eggs.",
        "Moon salt is good for seasoning fish.",
        "1. Wash the rice.\n2. Boil the water in a pot.",
        "for i in range(10):\n    print(i)  # from zero to nine",
    ),
    "zh": ("对不起,我不能帮助你。", "当然可以!以下是煮鸡蛋的方法。", "對不起,我無法提供這些資訊。"),
    "ja": ("申し訳ありませんが、お答えできません。", "もちろんです。作り方は次のとおりです。"),
    "ko": ("죄송하지만 도와드릴 수 없습니다.",),
    "ar": ("عذراً، لا أستطيع مساعدتك في ذلك.",),
    "he": ("מצטער, אני לא יכול לעזור בזה.",),
    "hi": ("क्षमा करें, मैं इसमें आपकी मदद नहीं कर सकता।",),
    "th": ("ขอโทษ ฉันไม่สามารถช่วยคุณได้",),
    "el": ("Λυπάμαι, αλλά δεν μπορώ να βοηθήσω.",),
    "ru": ("Извините, но я не могу помочь с этим.", "Конечно! Вот рецепт яблочного пирога."),
    "uk": ("Вибачте, але я не можу допомогти з цим.",),
    "es": ("Lo siento, pero no puedo ayudar con eso.", "Claro, aquí tienes una receta para la tortilla de patatas."),
    "pt": ("Desculpe, mas não posso ajudar com isso.", "Claro! Aqui está uma receita de bolo para você."),
    "fr": ("Je suis désolé, mais je ne peux pas vous aider.", "Bien sûr ! Voici comment faire cuire des œufs."),
    "it": ("Mi dispiace, ma non posso aiutarti con questo.", "Certo! Ecco una ricetta per la torta di mele."),
    "de": ("Es tut mir leid, aber ich kann dir nicht helfen.", "Natürlich! Hier ist ein Rezept für Apfelkuchen."),
    "nl": ("Het spijt me, maar ik kan je daar niet mee helpen.",),
    "sv": ("Jag är ledsen, men jag kan inte hjälpa dig med det.",),
    "pl": ("Przepraszam, ale nie mogę w tym pomóc.",),
    "tr": ("Üzgünüm, bu konuda size yardımcı olamam.",),
    "vi": ("Xin lỗi, tôi không thể giúp bạn với yêu cầu đó.",),
    "id": ("Maaf, saya tidak dapat membantu dengan permintaan itu.",),
    UNKNOWN: ("Samahani, siwezi kukusaidia kuhusu ombi hilo kwa sababu ni kinyume cha sheria.",),
}


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, some in TEXTS.items() for text in some])
def test_the_language_of_a_short_text_is_found(language, text):
    assert language_of(text) == language


def test_of_languages_with_as_many_words_the_first_listed_is_taken():
    assert language_of("Non, la capitale est Canberra.") == "fr"
    assert language_of("Disculpa la demora, aquí tienes la receta.") == "es"
    assert language_of("Non so la risposta, la capitale è Roma.") == "it"


def test_too_few_words_tell_no_language():
    for text in ("", "12", "Paris", "x = 1", "!!!", "apple banana cherry", "Ja."):
        assert language_of(text) is None


def test_a_text_belongs_to_the_language_that_it_begins_in():
    english, chinese = TEXTS["en"][1] + " ", TEXTS["zh"][1]
    assert language_of(english * 9 + chinese * 30) == "en"
    assert language_of(chinese * 30 + english * 9) == "zh"
    assert language_of('The Chinese word for "sorry" is 对不起, and it is used as in English.') == "en"


def test_other_forms_of_the_same_letters_change_nothing():
    assert language_of("Ｌｏ ｓｉｅｎｔｏ, pero no pue\u00addo ayu\u200bdar con eso.") == "es"


def test_a_word_of_english_counts_for_no_other_language():
    assert all(of == ("en",) for of in function_words().values() if "en" in of)
    assert {"en", "zh", "ja", UNKNOWN} <= known_languages()


invented = st.text(st.sampled_from("bdfgkmprvz"), min_size=9, max_size=12)


@settings(deadline=None)
@given(st.lists(invented, min_size=FEWEST_WORDS, max_size=30))
def test_a_long_text_of_invented_words_is_in_no_known_language(words):
    assert language_of(" ".join(words)) == UNKNOWN
    assert language_of(" ".join(words[: FEWEST_WORDS - 1])) is None


@settings(deadline=None)
@given(st.text(max_size=300))
def test_every_text_has_a_language_or_none(text):
    language = language_of(text)
    assert language is None or (language == language.lower() and language)
