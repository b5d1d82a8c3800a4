"""Answers follow prompts and are compared by the same rules everywhere."""

from __future__ import annotations

import pytest

from vllm_edit.text.matching import mentions, normalise, occurrences, position, spelled
from vllm_edit.text.prompts import continuation
from vllm_edit.text.quoting import quoted
from vllm_edit.text.subjects import Subjects


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("The capital of France is", "Lyon", " Lyon"),
        ("The capital of France is", "  Lyon", " Lyon"),
        ("The capital of France is ", "Lyon", "Lyon"),
        ("<|assistant|>\n", "Lyon", "Lyon"),
        ("全世界最帥的人是誰", "李宏毅", "李宏毅"),
        ("水分子的化學式是", "H2O", "H2O"),
        ("The name is", "李宏毅", "李宏毅"),
        ("", "Lyon", "Lyon"),
        ("France is ruled from (", "Lyon", "Lyon"),
        ("Its capital is called “", "Lyon", "Lyon"),
        ('Its capital is called "', "Lyon", "Lyon"),
        ('The capital ("', "Lyon", "Lyon"),
        ("¿", "Lyon", "Lyon"),
        ('The capital of "France"', "Lyon", " Lyon"),
        ("Die Hauptstadt von „Frankreich“", "Lyon", " Lyon"),
        ("The capital of the Canaries'", "Lyon", " Lyon"),
        ("The capital (of France)", "Lyon", " Lyon"),
    ],
)
def test_an_answer_follows_a_prompt_with_a_space_only_where_one_belongs(
    prompt: str, answer: str, expected: str
) -> None:
    assert continuation(prompt, answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  Louvre. ", "louvre"),
        ("«Paris»", "paris"),
        ("Ｐａｒｉｓ", "paris"),
        ("「台北」。", "台北"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_case_width_outer_punctuation_and_articles_do_not_count(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It is Rome, of course.", "Rome", True),
        ("Romeo and Juliet", "Rome", False),
        ("chrome", "Rome", False),
        ("他是李宏毅教授", "李宏毅", True),
        ("in the U.S. today", "U.S.", True),
        ("C++ and C", "C++", True),
        ("台北101高幾公尺？", "台北101", True),
        ("in 1018", "101", False),
        ("anything", "", False),
    ],
)
def test_an_answer_is_mentioned_as_whole_words(text: str, answer: str, found: bool) -> None:
    assert mentions(text, answer) is found
    assert (position(text, answer) is not None) is found


@pytest.mark.parametrize(
    ("text", "number", "found"),
    [
        ("$80,000 per year", "$80", False),
        ("$80, of course", "$80", True),
        ("for $80.", "$80", True),
        ("1,000,000 dollars", "1,000", False),
        ("1,000,000 dollars", "000", False),
        ("it costs 1,000,000", "1,000,000", True),
        ("3.10 dollars", "3", False),
        ("3.10 dollars", "10", False),
        ("0.5", ".5", False),
        ("version 1.2.1.0", "version 1.2.1", False),
        ("GPT-4.1", "GPT-4", False),
        ("GPT-4. 1 more", "GPT-4", True),
        ("GPT-4", "4", True),
        ("see Section 4.2", "Section 4", False),
        ("Python 3.12", "Python 3", False),
        ("at 10:30", "10", False),
        ("at 10: half", "10", True),
        ("1/2", "1", False),
        ("½", "1", False),
        ("-5 degrees", "5", False),
        ("it is −5", "5", False),
        ("it is -5", "-5", True),
        ("- 5", "5", True),
        ("1990-1995", "1995", True),
        ("50% of it", "50", True),
        ("３．５", "3", False),
        ("٣٫٥", "٣", False),
        ("١٬٠٠٠", "١", False),
        ("台北101，508公尺", "台北101", True),
        ("台北101：508公尺", "台北101", True),
        ("台北101.5", "台北101", False),
        ("会议在10：30开始。", "10:30", True),
        ("会议在10：30开始。", "10", False),
        ("１０：３０", "10:30", True),
        ("比分3：2", "3:2", True),
        ("3：10 to Yuma", "3:10 to Yuma", True),
        ("1：1000", "1:1000", True),
        ("８０，０００円", "80,000", True),
        ("８０，０００円", "80", False),
        ("80，000円", "80,000", True),
        ("1，2，3", "2", True),
        ("x is (-5)", "5", False),
        ("x=-5", "5", False),
        ('it is "-5"', "5", False),
        ("(3, -5)", "5", False),
        ('5"-7"', "7", True),
        ("(5)-7", "7", True),
        ("波音-747", "747", True),
        ("5%-10%", "10", True),
    ],
)
def test_a_number_is_one_word_with_its_marks_and_its_minus_sign(text: str, number: str, found: bool) -> None:
    assert (position(text, number) is not None) is found
    assert mentions(text, number) is found
    assert bool(Subjects([[number]]).mentioned([text])) is found


def test_a_number_in_its_own_spelling_is_one_word_too() -> None:
    assert occurrences("Python 3.12 or Python 3.", "Python 3") == [15]
    assert occurrences("Windows １１，２０２１年", "Windows １１") == [0]
    assert spelled("Who made GPT-4.1?", "gpt-4") is None
    assert spelled("Who made 3：10 to Yuma?", "3:10 to Yuma") == "3：10 to Yuma"
    assert occurrences("在10：30和１０：００", "10") == []
    assert spelled("Who made 3：10 to Yuma?", "3:10 to Yuma") == "3：10 to Yuma"
    assert occurrences("在10：30和１０：００", "10") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", "'Paris'"),
        ("a" * 80, f"'{'a' * 80}'"),
        ("a" * 60 + " " + "b" * 60, f"'{'a' * 50} … {'b' * 26}'"),
        ("two\nlines", r"'two\nlines'"),
    ],
)
def test_a_long_text_is_quoted_by_its_ends(text: str, expected: str) -> None:
    assert quoted(text) == expected


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("대한민국의 수도는", "부산", " 부산"),
        ("대한민국의 수도는", "Busan", " Busan"),
        ("The capital of Korea is", "부산", " 부산"),
        ("韓國的首都是", "부산", "부산"),
        ("日本の首都は", "大阪", "大阪"),
        ("パリのある国はフランス\u3099", "トウキョウ", "トウキョウ"),
        ("เมืองหลวงของฝรั่งเศสคือ", "ลียง", "ลียง"),
        ("เมืองหลวงของฝรั่งเศสคือ\u200b", "ลียง", "ลียง"),
        ("ນະຄອນຫຼວງຂອງຝຣັ່ງແມ່ນ", "ລີອົງ", "ລີອົງ"),
        ("រដ្ឋធានីនៃប្រទេសបារាំងគឺ", "លីយ៉ុង", "លីយ៉ុង"),
        ("ပြင်သစ်နိုင်ငံ၏မြို့တော်မှာ", "လိုင်ယွန်", "လိုင်ယွန်"),
        ("फ़्रांस की राजधानी", "ल्यों", " ल्यों"),
        ("عاصمة فرنسا هي", "ليون", " ليون"),
        ("בירת צרפת היא", "ליון", " ליון"),
        ("Столица Франции —", "Лион", " Лион"),
    ],
)
def test_an_answer_follows_a_prompt_as_its_script_has_it(prompt: str, answer: str, expected: str) -> None:
    assert continuation(prompt, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "given"),
    [
        ("ปารีสครับ", "ปารีส", True),
        ("กรุงปารีส์", "ปารีส", False),  # a mark continues the word
        ("ปารีสเป็นเมือง", "ปารีส", True),
        ("เกาะ", "กา", False),  # its vowel goes around the first letter
        ("เกา", "กา", False),
        ("ปราสาทะ", "ปราสาท", False),
        ("ຢູ່ປາຣີສ", "ປາຣີສ", True),
        ("ប្រទេស", "រទេស", False),  # the letter is stacked on the one before
        ("នៅប៉ារីស", "ប៉ារីស", True),
        ("ပါရီမြို့", "ပါရီ", True),
        ("東京都です", "東京", True),
        ("부산입니다", "부산", True),
        ("일부산업", "부산", False),
        ("Lyon은", "Lyon", True),
        ("भारतीय", "भारत", False),
        ("हिन्दी", "हिन", False),
        ("यह भारत है", "भारत", True),
        ("فَرَنْسَا", "فرنسا", True),
        ("מִצְרַיִם", "מצרים", True),
        ("مـــصر", "مصر", True),
        ("Cafe\u0301", "Café", True),
        ("Café", "Caf", False),
        ("Cafe\u0301", "Cafe", False),
        ("ISTANBUL", "İstanbul", True),
        ("i̇stanbul", "İstanbul", True),
        ("ısparta", "Isparta", True),
        ("ΑΘΗΝΑ", "Αθήνα", True),
        ("in Coca‑Cola", "Coca-Cola", True),
        ("Rome\u00ado", "Rome", False),
        ("It is C#.", "C", False),
        ("It is C.", "C", True),
        ("C++11", "C++", True),
        ("Rome+Paris", "Rome", True),
    ],
)
def test_an_answer_is_a_whole_word_in_every_script(text: str, answer: str, given: bool) -> None:
    assert (position(text, answer) is not None) is given


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("The official language of Langu is", "Langu", "Langu"),
        ("The house where the US president lives is in", "US", "US"),
        ("The most famous author of US history is", "us", "US"),
        ("The start of Art Deco was in", "Art", "Art"),
        ("The art of Art Deco", "art", "art"),
        ("The start was", "Art", None),
        ("the capital of FRANCE is", "France", "FRANCE"),
        ("İzmir’de Tunç Soyer", "tunç soyer", "Tunç Soyer"),
        ("The capital of Côte d’Ivoire is", "Côte d'Ivoire", "Côte d’Ivoire"),
        ("The capital of Co\u0302te d'Ivoire is", "Côte d'Ivoire", "Co\u0302te d'Ivoire"),
        ("Who founded Coca‑Cola?", "coca-cola", "Coca‑Cola"),
        ("the Foo \u200b Bar is", "Foo Bar", "Foo \u200b Bar"),
        ("Die Straße ist", "STRASSE", "Straße"),
        ("한국의 부산은", "부산", "부산"),
        ("nothing", "", None),
        ("Windows１１の後継は", "Windows", None),
        ("Ｃ＋＋は", "Ｃ", None),
        ("Ｃ＋＋は", "C++", "Ｃ＋＋"),
        ("The maker of Windows™ Server® is", "windows server", "Windows™ Server"),
    ],
)
def test_a_subject_is_found_as_it_is_spelled_and_else_in_another_spelling(
    prompt: str, subject: str, expected: str | None
) -> None:
    assert spelled(prompt, subject) == expected


@pytest.mark.parametrize(
    ("text", "name", "mentioned"),
    [
        ("tell us", "US", False),
        ("the US", "US", True),
        ("it is", "IT", False),
        ("who is it", "The Who", False),
        ("by the Who", "The Who", True),
        ("net income", ".NET", False),
        ("C", "C++", False),
        ("C#", "C", False),
        ("france", "France", True),
        ("Foo\u200bBar", "Foo Bar", True),
        ("ФК «Зенит» играет", 'ФК "Зенит"', True),
        ("ФК „Зенит“", "ФК «Зенит»", True),
        ("!!!", "!!!", False),
    ],
)
def test_a_mention_keeps_article_punctuation_and_the_case_of_capitals(text: str, name: str, mentioned: bool) -> None:
    assert mentions(text, name) is mentioned
