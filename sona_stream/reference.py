"""A fixed text, plain and varied: what a model's hidden states are standardised by, and what answers are set apart
from. Changing a letter of it makes another version.
"""

from __future__ import annotations

__all__ = ["REFERENCE_TEXT", "REFERENCE_VERSION"]

REFERENCE_VERSION = "reference-1"

REFERENCE_TEXT = """\
The market opens at seven. By half past, the first customers have gone through the crates of apples and asked \
whether the cheese is the same as last week's. It is not; the farm changed in March, when the old dairy closed.

What should I do when the printer says that it is offline? First check the cable and the network. Then restart the \
printer, wait a minute, and send a test page. If that fails, remove the device in the settings and add it again.

In 1869 Dmitri Mendeleev arranged the 63 known elements by atomic weight and left gaps for those that nobody had \
found yet. Water boils at 100 degrees Celsius at sea level, but at only about 93 degrees at 2,000 metres.

def moving_average(values: list[float], size: int) -> list[float]:
    if size < 1:
        raise ValueError("size must be at least 1")
    total, averages = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= size:
            total -= values[index - size]
        averages.append(total / min(index + 1, size))
    return averages

Dear Ms Okafor, thank you for your letter of 12 May. We are sorry that the parcel arrived damaged. A replacement \
leaves our warehouse tomorrow, free of charge, and you need not send the first one back. Yours sincerely, the team.

1. Preheat the oven to 180 degrees. 2. Mix 250 g of flour with two eggs and a pinch of salt. 3. Bake for 35 minutes.

SELECT city, COUNT(*) AS orders, SUM(amount) FROM sales WHERE year = 2023 GROUP BY city HAVING COUNT(*) > 10;

"I don't think she ever meant to leave," he said quietly, looking at the rain. "She only wanted someone to ask." \
Nobody answered. The clock in the hall struck nine, and somewhere upstairs a door closed.

Is a triangle with sides 3, 4 and 5 right-angled? Yes: 3 squared plus 4 squared is 9 + 16 = 25, which is 5 squared.

{"name": "sensor-7", "active": true, "readings": [21.5, 21.7, 22.0], "unit": "celsius"}

The court held that the contract was void, because neither party had signed it and the notice came after thirty \
days. In short: if you want a right, write it down, date it, and keep a copy.
"""
