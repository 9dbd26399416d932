"""The page "what works with what" says what the tests' marks say."""

from support import works_with


def test_the_page_is_up_to_date():
    assert works_with.PAGE.read_text("utf-8") == works_with.page(), "make works-with writes it anew"


def test_each_line_says_something_of_its_own():
    lines = [(one.subject, one.what) for one in works_with.shown()]
    assert all(text.strip() == text != "" for line in lines for text in line)
    assert len(set(lines)) == len(lines)
