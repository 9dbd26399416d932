"""The page on the tasks' data is that of the tasks as they are."""

from unistd.data.docs import PAGE, page
from unistd.tasks import TASKS
from unistd.tasks.cards import CARDS


def test_every_task_has_a_card():
    assert list(CARDS) == list(TASKS)
    assert all(all((card.content, card.made, card.limits, card.source, card.licence, card.forms, card.splits))
               for card in CARDS.values())  # fmt: skip


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "write it anew: python -m unistd.data.docs"
