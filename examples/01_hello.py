"""One event, two handlers, a broker that starts by itself. Run: python 01_hello.py"""

import asyncio

import tidings

bus = tidings.Bus("hello")


class NewItem(tidings.Event, subject="events.todo.newitem"):
    item: str


@bus.on(NewItem, group="save")
async def save(new: NewItem) -> None:
    print(f"saved   {new.item}")


@bus.on("events.todo.>", group="audit")
async def audit(message: tidings.Message) -> None:
    print(f"audited {message.subject} {message.data}")


async def main() -> None:
    async with bus:
        receipt = await bus.publish(NewItem(item="write the docs"))
        print(f"stored  {receipt.subject} at position {receipt.position}")


if __name__ == "__main__":
    asyncio.run(main())
