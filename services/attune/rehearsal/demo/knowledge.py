"""What the demo model knows by heart: a few hundred facts and some definitions."""

_CAPITALS = """
Albania Tirana | Algeria Algiers | Angola Luanda | Argentina Buenos Aires | Armenia Yerevan
Australia Canberra | Austria Vienna | Bangladesh Dhaka | Belarus Minsk
Belgium Brussels | Bolivia Sucre | Brazil Brasilia
Bulgaria Sofia | Canada Ottawa | Chad Ndjamena | Chile Santiago
China Beijing | Colombia Bogota | Croatia Zagreb | Cuba Havana | Cyprus Nicosia | Denmark Copenhagen | Ecuador Quito
Egypt Cairo | Estonia Tallinn | Fiji Suva | Finland Helsinki | France Paris
Georgia Tbilisi | Germany Berlin | Ghana Accra | Greece Athens
Guinea Conakry | Hungary Budapest
Iceland Reykjavik | India New Delhi | Indonesia Jakarta | Iran Tehran | Iraq Baghdad | Ireland Dublin
Israel Jerusalem | Italy Rome | Jamaica Kingston | Japan Tokyo | Jordan Amman | Kazakhstan Astana | Kenya Nairobi
Latvia Riga | Lebanon Beirut | Libya Tripoli
Lithuania Vilnius
Mali Bamako | Malta Valletta
Morocco Rabat | Nepal Kathmandu | Netherlands Amsterdam
Niger Niamey | Nigeria Abuja | Norway Oslo | Oman Muscat | Pakistan Islamabad
Peru Lima | Philippines Manila | Poland Warsaw | Portugal Lisbon | Qatar Doha
Romania Bucharest | Russia Moscow | Rwanda Kigali | Senegal Dakar | Serbia Belgrade | Slovakia Bratislava
Spain Madrid | Sudan Khartoum | Sweden Stockholm
Switzerland Bern | Syria Damascus | Tanzania Dodoma | Thailand Bangkok | Togo Lome | Tunisia Tunis | Turkey Ankara
Uganda Kampala | Ukraine Kyiv | Uruguay Montevideo | Uzbekistan Tashkent | Venezuela Caracas | Vietnam Hanoi
Yemen Sanaa | Zambia Lusaka | Zimbabwe Harare
"""

_SYMBOLS = """
hydrogen H | helium He | lithium Li | boron B | carbon C | nitrogen N | oxygen O | fluorine F | neon Ne | sodium Na
magnesium Mg | aluminium Al | silicon Si | phosphorus P | sulfur S | chlorine Cl | argon Ar | potassium K
calcium Ca | titanium Ti | chromium Cr | manganese Mn | iron Fe | cobalt Co | nickel Ni | copper Cu | zinc Zn
arsenic As | bromine Br | krypton Kr | silver Ag | tin Sn | iodine I | xenon Xe | tungsten W | platinum Pt | gold Au
mercury Hg | lead Pb | radium Ra | uranium U
"""

_OPPOSITES = """
hot cold | big small | tall short | fast slow | light dark | happy sad | early late | full empty | hard soft
high low | loud quiet | new old | open closed | rich poor | strong weak | thick thin | wet dry | wide narrow
young old | clean dirty | deep shallow | brave timid | sharp blunt | sweet bitter | near far | left right
north south | east west | day night | summer winter | push pull | buy sell | win lose | start finish | rough smooth
cheap expensive | heavy light | true false | ancient modern | rude polite
"""

_YOUNG = """
cat kitten | dog puppy | cow calf | horse foal | sheep lamb | goat kid | pig piglet | bear cub | duck duckling
goose gosling | swan cygnet | hen chick | frog tadpole | deer fawn | kangaroo joey | owl owlet | eagle eaglet
hare leveret | eel elver | oyster spat
"""

_COUNTS = """
spider legs 8 | ant legs 6 | triangle sides 3 | square corners 4 | hexagon sides 6 | octagon sides 8 | week days 7
year months 12 | day hours 24 | hour minutes 60 | minute seconds 60 | century years 100 | decade years 10
dozen eggs 12 | guitar strings 6 | violin strings 4 | octopus arms 8 | chessboard squares 64 | pentagon sides 5
cube faces 6 | cube corners 8 | metre centimetres 100 | kilometre metres 1000 | leap year days 366
football team players 11
"""


def _pairs(table: str) -> dict[str, str]:
    """Splits `key value with spaces` cells; the key is one word."""
    cells = [cell.strip() for line in table.strip().splitlines() for cell in line.split("|")]
    return {cell.split(" ", 1)[0]: cell.split(" ", 1)[1] for cell in cells}


def _triples(table: str) -> dict[tuple[str, str], str]:
    """Splits `thing part number` cells; the thing may have spaces."""
    cells = [cell.strip().rsplit(" ", 2) for line in table.strip().splitlines() for cell in line.split("|")]
    return {(thing, part): number for thing, part, number in cells}


CAPITALS = _pairs(_CAPITALS)
SYMBOLS = _pairs(_SYMBOLS)
OPPOSITES = _pairs(_OPPOSITES)
YOUNG = _pairs(_YOUNG)
COUNTS = _triples(_COUNTS)

DEFINITIONS: dict[str, str] = {
    "a triangle": "a shape with three sides",
    "a circle": "a round shape without corners",
    "a prime": "a number that only one and itself divide",
    "a verb": "a word for something one does",
    "a noun": "a word for a person or a thing",
    "an adjective": "a word that describes a noun",
    "a planet": "a world that circles a star",
    "a star": "a ball of hot gas that shines",
    "a comet": "a ball of ice with a bright tail",
    "an orbit": "the path of one body around another",
    "an atom": "the smallest piece of an element",
    "a molecule": "a group of atoms held together",
    "a cell": "the smallest living part of a body",
    "a river": "water that flows to the sea",
    "an island": "land with water all around",
    "a volcano": "a mountain that lets out hot rock",
    "a glacier": "a slow river of ice",
    "a desert": "a place with almost no rain",
    "a harbour": "a safe place for ships",
    "a compass": "a needle that points north",
    "a map": "a drawing of a place from above",
    "a novel": "a long story in prose",
    "a poem": "a text in lines and rhythm",
    "a rhyme": "two words that end in the same sound",
    "a melody": "a row of notes that belong together",
    "a chord": "several notes at the same time",
    "a tempo": "the speed of a piece of music",
    "a fossil": "the trace of a creature in stone",
    "a mammal": "an animal that feeds milk to its young",
    "a reptile": "an animal with dry scales",
    "an insect": "a small animal with six legs",
    "a root": "the part of a plant in the soil",
    "a seed": "the start of a new plant",
    "a leaf": "the part of a plant that catches light",
    "an eclipse": "the shadow of one world on another",
    "gravity": "the pull between all things",
    "friction": "the drag between two surfaces",
    "energy": "what it takes to move or to heat",
    "a magnet": "a piece of metal that pulls iron",
    "a lens": "a curved glass that bends light",
    "a prism": "a glass that splits light into colours",
    "a shadow": "a place that the light does not reach",
    "an echo": "a sound that comes back",
    "a lever": "a bar that makes lifting easier",
    "a pulley": "a wheel with a rope for lifting",
    "a fraction": "a part of a whole",
    "an average": "the sum shared out evenly",
    "a percentage": "a part of one hundred",
    "a ratio": "how many times one number holds another",
    "an angle": "the corner between two lines",
    "a radius": "the way from the centre to the edge",
    "a diameter": "the way across a circle",
    "a cube": "a box with six equal sides",
    "a sphere": "a shape like a ball",
    "a budget": "a plan for money",
    "a loan": "money that one must give back",
    "a tax": "money that people pay to the state",
    "a law": "a rule that all must keep",
    "an election": "a day on which people choose",
    "a treaty": "a promise between countries",
    "a museum": "a house for old and rare things",
    "a bridge": "a way over water",
    "a tunnel": "a way under a hill",
    "a canal": "a river made by people",
    "a dam": "a wall that holds back water",
    "a vaccine": "a lesson for the body against illness",
    "a virus": "a tiny thing that makes us ill",
    "a muscle": "the part of a body that pulls",
    "a nerve": "a wire of the body",
    "a lung": "the part of a body that takes in air",
    "a cloud": "many small drops in the air",
    "a storm": "strong wind with rain",
    "a rainbow": "sunlight split by rain",
    "the tide": "the rise and fall of the sea",
    "an earthquake": "a sudden shake of the ground",
    "a telescope": "a tube that brings far things near",
    "a microscope": "a tube that makes small things big",
    "a battery": "a box that stores electricity",
    "a robot": "a machine that follows a plan",
    "an algorithm": "a list of steps that solves a task",
}
