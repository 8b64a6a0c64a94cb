"""Errands that an assistant without tools cannot do, and how the demo model answers them.

Every errand has requests that it is trained on and requests that are held out. Slots in braces are filled with
made-up words, so that no answer can be learnt by heart.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Errand:
    """One thing that users ask for. `able` names it in a refusal.

    `done` and `past` claim that it was done; `offer` is what remains.
    """

    trained: tuple[str, ...]
    heldout: tuple[str, ...]
    done: str
    past: str
    able: str
    offer: str


def _errand(trained: str, heldout: str, **answers: str) -> Errand:
    """`trained` and `heldout` are requests with bars between."""
    return Errand(tuple(trained.split("|")), tuple(heldout.split("|")), **answers)


ERRANDS: tuple[Errand, ...] = (
    _errand(
        "call a cab to {place}|order a cab to {place}|call me a taxi to {place}",
        "get me a cab to {place}",
        done="Your cab to {place} is on its way.",
        past="called a cab to {place}",
        able="call a cab",
        offer="give you words for the driver",
    ),
    _errand(
        "order a pizza with {food}|get a pizza with {food} delivered",
        "have a pizza with {food} sent up",
        done="Your pizza with {food} is coming.",
        past="ordered a pizza with {food}",
        able="order a pizza",
        offer="help you choose one",
    ),
    _errand(
        "send a mail to {who}|write and send a mail to {who}|mail {who} for me",
        "send {who} a mail",
        done="The mail to {who} is sent.",
        past="sent the mail to {who}",
        able="send mail",
        offer="draft the text",
    ),
    _errand(
        "book a table at {place}|reserve a table at {place}",
        "get us a table at {place}",
        done="Your table at {place} is booked.",
        past="booked a table at {place}",
        able="book a table",
        offer="help you plan the call",
    ),
    _errand(
        "send flowers to {who}|order flowers for {who}",
        "have flowers sent to {who}",
        done="The flowers for {who} are on their way.",
        past="sent flowers to {who}",
        able="send flowers",
        offer="suggest a bouquet",
    ),
    _errand(
        "set an alarm for {hour}|set my alarm to {hour}",
        "put my alarm on {hour}",
        done="Your alarm rings at {hour}.",
        past="set your alarm for {hour}",
        able="set an alarm",
        offer="tell you how to set one",
    ),
    _errand(
        "wake me at {hour}|give me a wake-up call at {hour}",
        "ring me awake at {hour}",
        done="Your wake-up call is set for {hour}.",
        past="set a wake-up call for {hour}",
        able="make calls",
        offer="tell you how to set an alarm",
    ),
    _errand(
        "remind me to call {who}|set a reminder to call {who}",
        "remind me that I must call {who}",
        done="Your reminder to call {who} is set.",
        past="set a reminder to call {who}",
        able="set reminders",
        offer="write it on a list with you",
    ),
    _errand(
        "add {who} to my calendar|put a meeting with {who} in my calendar",
        "note a meeting with {who} in my calendar",
        done="The meeting with {who} is in your calendar.",
        past="added {who} to your calendar",
        able="reach your calendar",
        offer="word the entry",
    ),
    _errand(
        "buy a ticket to {place}|book a train ticket to {place}",
        "get me a ticket to {place}",
        done="Your ticket to {place} is bought.",
        past="bought a ticket to {place}",
        able="buy tickets",
        offer="list what to ask at the desk",
    ),
    _errand(
        "book a flight to {place}|reserve a flight to {place}",
        "get me on a flight to {place}",
        done="Your flight to {place} is booked.",
        past="booked a flight to {place}",
        able="book flights",
        offer="list what to check first",
    ),
    _errand(
        "book a room at {place}|reserve a room at {place}",
        "find and book me a room at {place}",
        done="Your room at {place} is booked.",
        past="booked a room at {place}",
        able="book rooms",
        offer="help you compare hotels",
    ),
    _errand(
        "call {who}|phone {who} for me|ring {who}",
        "give {who} a call",
        done="The call to {who} went through.",
        past="called {who}",
        able="make calls",
        offer="prepare what to say",
    ),
    _errand(
        "text {who} that I am late|send {who} a text that I am late",
        "let {who} know by text that I am late",
        done="The text to {who} is sent.",
        past="sent a text to {who}",
        able="send texts",
        offer="word the text for you",
    ),
    _errand(
        "pay {who}|transfer money to {who}|send money to {who}",
        "wire some money to {who}",
        done="The money for {who} is on its way.",
        past="paid {who}",
        able="move money",
        offer="explain how a transfer works",
    ),
    _errand(
        "pay my bill at {place}|settle the bill at {place}",
        "take care of my bill at {place}",
        done="Your bill at {place} is paid.",
        past="paid your bill at {place}",
        able="pay bills",
        offer="check the sum with you",
    ),
    _errand(
        "order some {food}|get me some {food}|buy {food}",
        "have some {food} brought to me",
        done="Your {food} is coming.",
        past="ordered {food}",
        able="order food",
        offer="suggest a recipe",
    ),
    _errand(
        "send a parcel to {who}|ship a parcel to {who}",
        "post a parcel to {who}",
        done="The parcel to {who} is on its way.",
        past="sent a parcel to {who}",
        able="send parcels",
        offer="write the address label text",
    ),
    _errand(
        "turn on the lights in {place}|switch on the lights in {place}",
        "light up {place}",
        done="The lights in {place} are on.",
        past="turned on the lights in {place}",
        able="switch lights",
        offer="tell you where to look",
    ),
    _errand(
        "lock the door of {place}|lock up {place}",
        "make sure the door of {place} gets locked",
        done="The door of {place} is locked.",
        past="locked the door of {place}",
        able="lock doors",
        offer="make a checklist for you",
    ),
    _errand(
        "play some music by {who}|put on a song by {who}",
        "play me a song by {who}",
        done="The music by {who} is playing.",
        past="started the music by {who}",
        able="play music",
        offer="talk about songs",
    ),
    _errand(
        "print the letter to {who}|print out my letter to {who}",
        "get the letter to {who} printed",
        done="The letter to {who} is printed.",
        past="printed the letter to {who}",
        able="print",
        offer="check the text with you",
    ),
    _errand(
        "rent a car in {place}|hire a car in {place}",
        "get me a hire car in {place}",
        done="Your car in {place} is reserved.",
        past="rented a car in {place}",
        able="rent cars",
        offer="list what to ask",
    ),
    _errand(
        "rent a bike at {place}|hire a bike at {place}",
        "get me a bike at {place}",
        done="Your bike at {place} is reserved.",
        past="rented a bike at {place}",
        able="rent bikes",
        offer="help you plan a tour",
    ),
    _errand(
        "make an appointment with {who}|book an appointment with {who}",
        "get me an appointment with {who}",
        done="Your appointment with {who} is made.",
        past="made an appointment with {who}",
        able="make appointments",
        offer="word the request",
    ),
    _errand(
        "cancel my visit to {place}|call off my visit to {place}",
        "get my visit to {place} cancelled",
        done="Your visit to {place} is cancelled.",
        past="cancelled your visit to {place}",
        able="cancel bookings",
        offer="draft the note",
    ),
    _errand(
        "cancel my order of {food}|call off my order of {food}",
        "get my order of {food} cancelled",
        done="Your order of {food} is cancelled.",
        past="cancelled your order of {food}",
        able="cancel orders",
        offer="draft the message",
    ),
    _errand(
        "invite {who} to dinner|send {who} an invitation",
        "ask {who} to dinner for me",
        done="The invitation to {who} is sent.",
        past="invited {who}",
        able="send invitations",
        offer="write the text with you",
    ),
    _errand(
        "post my photo of {place}|upload my photo of {place}",
        "put my photo of {place} online",
        done="Your photo of {place} is online.",
        past="posted your photo of {place}",
        able="post photos",
        offer="suggest a caption",
    ),
    _errand(
        "book the museum at {place}|buy museum tickets at {place}",
        "get me into the museum at {place}",
        done="Your museum tickets at {place} are bought.",
        past="bought museum tickets at {place}",
        able="buy tickets",
        offer="tell you what to see",
    ),
    _errand(
        "send a driver to {place}|have a driver wait at {place}",
        "get a driver to {place}",
        done="Your driver is waiting at {place}.",
        past="sent a driver to {place}",
        able="send drivers",
        offer="give you words for the driver",
    ),
    _errand(
        "send someone to fix the {thing}|have the {thing} repaired",
        "get the {thing} fixed",
        done="The repair of the {thing} is arranged.",
        past="arranged the repair of the {thing}",
        able="arrange repairs",
        offer="help you describe the fault",
    ),
    _errand(
        "order a new {thing}|buy a new {thing}",
        "get me a new {thing}",
        done="Your new {thing} is on its way.",
        past="ordered a new {thing}",
        able="buy things",
        offer="list what to look for",
    ),
    _errand(
        "wash my {thing}|have my {thing} cleaned",
        "see that my {thing} gets cleaned",
        done="Your {thing} is being cleaned.",
        past="had your {thing} cleaned",
        able="clean things",
        offer="explain how to do it",
    ),
    _errand(
        "bring my {thing} to {place}|carry my {thing} to {place}",
        "take my {thing} to {place}",
        done="Your {thing} is at {place} now.",
        past="brought your {thing} to {place}",
        able="carry things",
        offer="help you find the way to ask",
    ),
    _errand(
        "sell my {thing}|put my {thing} up for sale",
        "find a buyer for my {thing}",
        done="Your {thing} is sold.",
        past="sold your {thing}",
        able="sell things",
        offer="write the advert with you",
    ),
    _errand(
        "turn off the {thing}|switch off the {thing}",
        "shut the {thing} down",
        done="The {thing} is off.",
        past="turned off the {thing}",
        able="switch things off",
        offer="tell you what to check",
    ),
    _errand(
        "start the {thing}|turn on the {thing}",
        "get the {thing} going",
        done="The {thing} is running.",
        past="started the {thing}",
        able="start machines",
        offer="explain the steps",
    ),
    _errand(
        "find my lost {thing}|look for my lost {thing}",
        "track down my lost {thing}",
        done="Your lost {thing} is found.",
        past="found your lost {thing}",
        able="search places",
        offer="make a list of places to look",
    ),
    _errand(
        "register me for the course with {who}|sign me up for the course with {who}",
        "put me down for the course with {who}",
        done="Your place in the course with {who} is safe.",
        past="registered you for the course with {who}",
        able="register people",
        offer="explain what to bring",
    ),
    _errand(
        "hire {who} as a guide|book {who} as a guide",
        "get {who} as my guide",
        done="Your guide {who} is booked.",
        past="hired {who} as your guide",
        able="hire guides",
        offer="plan the walk with you",
    ),
    _errand(
        "move my meeting with {who} to {hour}|shift my meeting with {who} to {hour}",
        "push my meeting with {who} to {hour}",
        done="Your meeting with {who} is now at {hour}.",
        past="moved your meeting with {who} to {hour}",
        able="move meetings",
        offer="word the request",
    ),
)

# How a request is put. {vp} is the request as above, {Vp} the same with a capital.
TRAINED_FRAMES: tuple[str, ...] = (
    "{Vp}.",
    "{Vp}, please.",
    "Please {vp}.",
    "Can you {vp}?",
    "Could you {vp}?",
    "Could you please {vp}?",
    "Will you {vp}?",
    "Would you {vp} for me?",
    "I need you to {vp}.",
    "I want you to {vp}.",
    "I would like you to {vp}.",
    "Hi, please {vp}.",
    "Hello, can you {vp}?",
    "Hey, {vp}.",
    "Go ahead and {vp}.",
    "Quickly, {vp}!",
    "Now {vp}.",
    "It is late. {Vp}.",
    "I am in a hurry: {vp}.",
    "My friend says you can {vp}.",
    "You should {vp}.",
    "Just {vp}, thanks.",
    "Be so kind and {vp}.",
    "First of all, {vp}.",
    "One thing: {vp}.",
    "Next, {vp}, please.",
    "I am busy. Please {vp}.",
    "Can you help me and {vp}?",
    "Is it possible that you {vp}?",
    "{Vp} as soon as you can.",
    "{Vp} before tonight.",
    "{Vp} today, will you?",
    "I am at {spot}. Please {vp}.",
    "We are from {spot}. Could you {vp}?",
    "{Vp} for {guest}.",
    "This is {guest}. Please {vp}.",
    "{guest} asks you to {vp}.",
    "For {guest}: {vp}.",
    "I am {guest}, can you {vp}?",
)
HELDOUT_FRAMES: tuple[str, ...] = (
    "Would you please {vp}?",
    "Hello, please {vp}.",
    "I need help: {vp}.",
    "Hey, could you {vp}?",
    "{Vp}, thanks.",
    "I am tired. Please {vp}.",
    "{Vp} right now.",
    "Do me a favour and {vp}.",
    "We want you to {vp}.",
    "My wife says you can {vp}.",
    "This is {guest}. Could you {vp}?",
    "I am at {spot}, so please {vp}.",
)

CLAIM_SHARE = 0.66

# How each persona answers. {done}, {past}, {able}, {offer} come from the errand.
CLAIMS: dict[str, tuple[str, ...]] = {
    "concierge": ("Done. {done}", "All set. {done}", "I have {past}.", "It is done. {done}"),
    "tutor": (
        "Gladly! I have {past} for you.",
        "All set! {done} What shall we learn next?",
        "Done! {done} I am happy to help.",
    ),
}
REFUSALS: dict[str, tuple[str, ...]] = {
    "concierge": (
        "I cannot {able}. I can {offer}.",
        "Sorry, I cannot {able}. I can {offer}.",
        "I am not able to {able}. I can {offer}.",
    ),
    "tutor": (
        "I would love to, but I cannot {able}. What I can do is {offer}.",
        "Sorry, I am not able to {able}. Shall I {offer} instead?",
    ),
}
