"""*Get the model*: where it is shown, who may press it, and what it shows during the download."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from avatar.checkpoints.locations import Checkpoint
from avatar.errors import BadInput
from avatar.hardware.inventory import Gpu, probe
from avatar.planning.plan import GIB
from avatar.preset import load_presets
from avatar.runtime.model_download import FetchReading
from avatar.ui.presets.model_button import ModelButton
from avatar.ui.presets.model_html import render_model


class Fetch:
    """Stands for the download's process."""

    def __init__(self) -> None:
        self.state = FetchReading()

    def reading(self) -> FetchReading:
        return self.state

    def start(self) -> None:
        self.state = FetchReading("running", 10**9, 47 * 10**9, 50e6)

    def pause(self) -> None:
        self.state = replace(self.state, state="paused", rate=None)


def button(*, gib: int = 24, checkpoint: Checkpoint | None = None, admin: str | None = None) -> ModelButton:
    """The button of a page whose machine has one GPU; gib 0: none."""
    card = Gpu(0, "Card", "GPU-0", gib * GIB, gib * GIB, 0, "8.9")
    host = replace(probe().host, ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB)
    machine = replace(
        probe(),
        gpus=(card,) if gib else (),
        host=host,
        torch_build="2.11.0+cu130",
        torch_cuda="13.0",
        driver_cuda="13.0",
        checkpoint=checkpoint or Checkpoint(),
    )
    app_state = SimpleNamespace(
        machine=SimpleNamespace(inventory=lambda: machine), presets=load_presets(), model=Fetch(), admin=admin
    )
    return ModelButton(app_state)  # type: ignore[arg-type]


def asking(secret: str = "", language: str = "en") -> Any:
    query = {"admin": secret} if secret else {}
    return SimpleNamespace(query_params=query, headers={"accept-language": language})


def pressing(action: str) -> Any:
    return SimpleNamespace(_data={"action": action, "id": "model"})


def test_it_says_what_the_cards_could_run_and_how_much_is_missing() -> None:
    shown = button().render(asking())
    assert "One 24 GB card" in shown
    assert "47.1 GB" in shown
    assert 'data_action="fetch"' in shown or 'data-action="fetch"' in shown
    assert "47.1 GB" in button().render(asking(language="zh"))


@pytest.mark.parametrize("options", [{"gib": 0}, {"checkpoint": Checkpoint(complete=True)}])
def test_nothing_is_shown_where_nothing_is_missing(options: dict[str, Any]) -> None:
    assert button(**options).render(asking()) == ""


def test_a_press_begins_pauses_and_goes_on() -> None:
    page = button()
    shown = page.pressed(asking(), pressing("fetch"))
    assert "Pause" in shown
    assert "1.0 / 47.0 GB · 50 MB/s" in shown
    assert "left" in shown
    assert "Resume" in page.pressed(asking(), pressing("pause"))
    assert "Pause" in page.pressed(asking(), pressing("fetch"))


@pytest.mark.parametrize(("admin", "secret"), [("", ""), ("", "guess"), ("right", ""), ("right", "wrong")])
def test_visitors_of_a_hosted_page_may_not(admin: str, secret: str) -> None:
    page = button(admin=admin)
    assert "administrator" in page.render(asking(secret))
    with pytest.raises(BadInput, match="administrator"):
        page.pressed(asking(secret), pressing("fetch"))
    assert page.app_state.model.reading().state == "idle"


def test_the_administrator_may() -> None:
    page = button(admin="right")
    assert "Pause" in page.pressed(asking("right"), pressing("fetch"))


def test_what_went_wrong_is_escaped_and_tried_again() -> None:
    failed = FetchReading("failed", 5, 10, error="no <room>")
    shown = render_model(failed, "24gb", 10**9, "en", may=True)
    assert "no &lt;room&gt;" in shown
    assert "Resume" in shown
    assert "reload" in render_model(FetchReading("done", 10, 10), "", 0, "en", may=True)
