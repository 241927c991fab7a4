"""The CPU time of an event on each path as bars: an SVG that any site shows."""

from __future__ import annotations

from html import escape

from bench.table import Table, Throughput

_WIDTH, _LINE, _LEFT, _RIGHT = 800, 26, 330, 70
_OURS, _OTHERS = "#2166ac", "#b0b0b0"


def bars(table: Table) -> str:
    """Give the drawing."""
    others = [table.loop, table.consumer, table.floor, table.peer, table.peer_filter, table.peer_batched]
    ours = [table.plain, table.cel, table.secure, table.two, table.back]
    rucio = [table.rabbitmq_amqp, table.rabbitmq_stomp, table.activemq_stomp]
    drawn = [
        *((path, _OTHERS) for path in others),
        *((path, _OURS) for path in (*ours, *rucio)),
        (table.receiver, _OTHERS),
        *((path, _OURS) for path in (table.sqs, table.notifications)),
    ]
    there = [(path, colour) for path, colour in drawn if path.cpu.figures]
    longest = max((path.cpu.median for path, _ in there), default=1.0)
    lines = [_bar(at, path, colour, longest) for at, (path, colour) in enumerate(there)]
    height = _LINE * len(there) + 40
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
    words = f'<tspan fill="{_OURS}">the bridge</tspan>, <tspan fill="#707070">others</tspan>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            f'<text x="10" y="22" font-weight="bold">CPU time of an event, µs: {words}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def _bar(at: int, path: Throughput, colour: str, longest: float) -> str:
    top = 36 + _LINE * at
    width = (_WIDTH - _LEFT - _RIGHT) * path.cpu.median / longest
    name = escape(path.rate.name.replace("`", "").removesuffix(", its deletes included"))
    return (
        f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{name}</text>'
        f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_LINE - 6}" fill="{colour}"/>'
        f'<text x="{_LEFT + width + 6:.1f}" y="{top + 15}">{path.cpu.median:.0f}</text>'
    )
