"""Draws the chart that the task describes; asks for the columns that the task leaves open."""

from engine_agent import UserError, ask_many, log, outputs_dir, progress, step
from files import choose_file
from plan import known, open_choices, read_task

MOST_CHOICES = 50  # that a person can look through


def main(task, inputs):
    """Settle what to draw, compute the points in one step, draw them."""
    log("Looking for the table")
    path, _ = choose_file(task, what="table", sample="sample_sales.csv")
    from points import compute
    from tables import column_kind, open_table

    table = open_table(path)
    sample = table.sample()
    kinds = {name: column_kind(sample[name]) for name in table.columns}
    plan = settle(read_task(task, inputs, kinds), kinds)
    log(f"Drawing a {plan.kind} chart: {plan.title}")
    progress(0.3, "Reading the columns")
    points = step("compute the points", compute, table, plan, kinds)
    plan = plan.having("period", points["period"])
    for note in points["notes"]:
        log(note, level="warning")
    progress(0.8, "Drawing")
    from charts import save
    from draw import draw

    save(draw(plan, outputs_dir / points["file"]), "chart.png")
    return {**plan.as_json(), "rows": table.rows, "points": points["count"], "notes": points["notes"]}


def settle(plan, kinds):
    """Ask for the parts of the plan that are still open, at once; what has one choice only needs no question."""
    questions = {}
    for part, prompt in (("x", "What goes along the horizontal axis?"), ("y", "What should the chart show?")):
        choices = open_choices(plan, part, kinds)
        if len(choices) == 1:
            plan = plan.having(part, choices[0])
        elif len(choices) > MOST_CHOICES:
            questions[part] = {"prompt": f"{prompt} Name one of the {len(choices):,} columns.", "key": part}
        elif choices:
            prompt = f"{prompt} The task leaves it open."
            questions[part] = {"prompt": prompt, "choices": choices, "key": part}
    for part, answer in zip(questions, ask_many(list(questions.values())) if questions else [], strict=True):
        plan = plan.having(part, known(answer, kinds))
    if plan.x == plan.y:
        raise UserError(
            f"“{plan.x}” cannot be on both axes.", remedy="Start again and choose two different columns."
        )
    return plan.completed(kinds)
