"""Detection of leaks: words by which a faulty answer reveals its fault.

A fault is a variation of a correct answer to a known instruction. Its remarks (prose, comments, docstrings) are
analyzed sentence by sentence; sentences that the instruction or the correct answer contains as well are ignored. A
lexicon assigns classes to words, and rules over these classes find assessments of the program: words for faults,
omissions, negated actions, contrasts with an intention, doubts and bad consequences. A match counts as a leak unless a
release rule shows that the words are about the subject: a condition ("if the file is missing"), data ("wrong
password"), error handling ("log errors"), or a property of correct programs ("does not modify its argument").
"""

import keyword
import re
from collections.abc import Iterator

from .answers import remarks, split_answer, string_literals, without_comments, without_strings

__all__ = ["find_leak"]


def _read_lexicon(text: str) -> dict[str, list[str]]:
    """Return the words of each class of a table, whose entries begin with the name of the class."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    _, *parts = re.split(r"([A-Z]+): ", " ".join(lines))
    return {name: words.split() for name, words in zip(parts[::2], parts[1::2], strict=True)}


_LEXICON = _read_lexicon(
    """
    # Words for faults that data hardly ever have; released only by the instruction or the correct answer.
    FAULT: bug bugs buggy bugged typo typos flaw* faulty deliberate* intentional* unintentional* unintended purposely
        purposeful* mistak* accident accidental* sabotag* tamper* misspel* mistyp* misnam* misplac* misus* miscalculat*
        miscount* mishandl* misalign* misinterpret* misread* misunderst* misguid* misapplied misorder* misbehav*
        mislead* wrongly incorrectly erroneously improper improperly inaccura* imprecise* unreliabl* nonsens* haywire
        awry amiss careless* slopp* premature* defect* glitch* blunder* slip-up* oversight* gotcha* caveat* pitfall*
        discrepan* subtle subtly sneak* fixme todo xxx oops ooops whoops uh-oh argh unfortunate* sadly supposedly
        allegedly seemingly pretend* plausibl* unfinished unreachabl* forgot forgotten forget forgets forgetting
        neglect* overlook* confus* conflat* actually hmm* hopefully off-by-one off-by-two off-by-n off-by-code lol haha
        dont-tell undercount* overcount* overshoot* undershoot* double-count* underestimat* overestimat*
        backwards-logic half-baked incomplete nonworking non-working botch* bogus hack hacky corrupted-logic tricked
        spoiler hopeless* misspelt technically
    # States that data have as well as programs.
    STATE: wrong incorrect erroneous missing absent broken bad fail fails failed failing failure failures error errors
        exception exceptions undefined unexpected crash crashes crashed crashing fault faults inconsistent undeclared
        uninitialised uninitialized nonexistent non-existent unimported unbound misformed problematic suspicious
        unstable issue issues unhandled unchecked unclosed unterminated stale
        mismatch*
    ERRNAME: *error *exception stopiteration segfault*
    BLUNDER: nameerror unboundlocalerror syntaxerror indentationerror taberror recursionerror attributeerror
        modulenotfounderror importerror typeerror indexerror zerodivisionerror
    DATA: input inputs user users data value values arg args argument arguments param params parameter parameters
        password passwords pin pins credential* login logins guess guesses answer answers attempt attempts try tries
        letter letters char chars character characters word words string strings number numbers integer* digit digits
        item items element elements entry entries row rows column columns cell cells record records field fields file
        files path paths folder* director* key keys name names type types format formats length lengths size sizes
        shape* dimension* date dates email emails url urls link links token tokens bracket brackets pair pairs edge
        edges node nodes child children leaf leaves pixel* sample samples choice choices option options command
        commands request requests response* connection* packet* message messages move moves usage extension* image*
        page pages label labels question questions spelling prediction* coordinate* list lists array arrays dict dicts
        dictionar* set sets matri* header headers attribute* permission* position* tile tiles lines blank blanks vowel*
        tag tags id ids tree graph caller client server account balance amount stock index indices parts part
    HANDLE: handle handles handled handling catch catches catching caught report reports reported detect* count counts
        counting log logs logged logging ignor* skip skipped skipping print prints printed printing return returned
        returning show shows shown display* track* check checks checked checking avoid* prevent* guard guards guarded
        reject* drop dropped dropping filter* remov* retry retries retried flag flags flagged mark marks marked
        validat* allow* tolerat* protect* warn* recover* propagat* suppress* swallow* collect* store stores stored fill
        fills filled find finds found replac* treat* signal* indicat* no against on any minimi* comput* calculat*
        clamp* clip* sum accumulat* measur* estimat* send sends raise raised throw thrown deal deals fix correct
        corrects repair without for custom
    ERRNOUN: handl* message messages code codes rate rates margin* toleranc* term terms count counts log logs check*
        correct* detect* bar bars bound bounds function metric norm status type types class* page stream text response
        output value vector threshold level number string object event callback prone prone-* free list dict
    ERRADJ: squared standard absolute relative percent* rounding approximation training test validation prediction
        division checksum custom value file input parsing parse network http server client connection database domain
        range mean average reconstruction quantization truncation math os user page conversion overflow key i/o the
        small smallest total estimation measurement numerical floating-point float
    COND: if when whenever while until unless whether once after except otherwise in-case as-long-as case
    REL: that which who whose where because so since as to for and
    NEG: not never no nothing none nowhere neither nor
    BE: is are was were be been being gets get got has have had stays remains becomes looks
    AUX: do does did will would can could may might shall
    ADV: really yet properly correctly ever also even fully still just quite entirely always only then now here simply
        completely necessarily strictly exactly later therefore thus again eventually almost itself
    PROPERTY: modif* mutat* chang* alter* touch* affect* need* requir* rely relies depend* allow* permit* print* copy
        copies stor* matter* exist* contain* belong* use uses used using support* assum* block* exceed* fit fits own
        raise* throw* found know* visited seen see match* appear* overlap* equal* want* repeat* reus* hold* share*
        differ* occur* preserv* keep consum* recurs* wait* accept* specif* supplied given provided select* worry care
        cross* distinguish* be have has interfere involve* suffer happen in a an the empty null valid prime divisible
        present available possible part negative only just all more less too yet necessary needed enough-room of
        greater smaller equal both alphanumeric able sure guarantee* invalidate concern* overwrit* reorder*
    ACT: defin* import* increment* updat* declar* initiali* clos* decrement* assign* convert* cast* call* handl* reset*
        advanc* return* includ* count counts counted reach* check* consider* process* validat* compar* strip* sort* add
        adds added remov* restor* appl* carr* multipl* execut* sav* append* subtract* enforc* account* cover* bound*
        decreas* increas* move* moving shift* quot* escap* sanit* round* await* join* flush* terminat* stop stops
        finish* end ends exit exits break breaks work works compil* run runs pars* shrink* grow* halt* divide*
        implement* swap* stor* captur* verif* test* guard* loop loops iterat* wrap* invok* instantiat* free* releas*
        open* comput* calculat* sum sums print* matter-of hit hits make makes get gets come comes leave leaves go goes
        take takes give gives handle* deal* cope* look met satisfied true false fire* trigger* produc* yield* satisf*
        work*
    PART: colon colons paren* bracket brace* quote quotes comma commas semicolon* return import imports self base-case
        increment* decrement* indent* check checks guard guards operator* operand* cast casts conversion* break await
        step update initiali* keyword* condition* terminat* handling validation* statement* clause* exit bounds case
        cases rounding swap else declaration* definition* call bound sign signs denominator divisor formula branch
        comparison* index indices variable function method module operation inequality sides direction loop logic line
        reset exponent constant factor limit range accumulator counter syntax way side place spot unit units
    RESULT: result results output outputs total totals answer mean sum value values number count average returned thing
    SELF: this it that which here we code function method loop line program version implementation condition check
        comparison base-case recursion accumulator counter pointer range slice return variable statement solution step
        update call formula expression operator division algorithm variant body bound code_ running everything script
        snippet approach
    TASK: task spec* problem question assignment requirement* prompt exercise instruction* docstring asked requested
        required wanted intended statement description name signature
    ASK: want* ask* say says need needs expect* require* demand* call calls promis* claim* state* mention*
    BUT: but whereas although though yet however despite except even-though
    LACK: misses lacks lacking omits omitted omitting loses losing overlooks excludes excluding leaves drops skips
        ignores forgets missing dropped skipped lost excluded cuts truncates discards
    LOSE: misses lacks lacking omits omitted loses overlooks forgets lost gone
    POSITION: first last final end tail head middle root endpoint boundary edge remaining remainder rest half upper
        lower largest smallest square-root one some every index zero
    FAILS: fails failing crashes crashing hangs breaks explodes chokes stalls freezes misbehaves dies fail crash hang
        explode choke freeze misbehave blow blows trips overflows
    RUIN: ruins spoils wrecks destroys defeats messes invalidates garbles mangles clobbers
    BADLY: wrong wrongly incorrect* unexpected* bad badly inaccurate* erroneous* garbage inconsistent fail* crash*
        hang*
    CAUSE: raises causes caus* throws throw triggers trigger leads leading results resulting gives giving gets get hits
        yields yielding produces producing makes making generates ends meets encounters provokes raising throwing give
        produce raise return returns computes prints uses using with has contains introduces introduc*
    SHOULD: should ought must-really
    SHALL: should
    INSTEAD: instead-of rather-than in-place-of as-opposed-to
    REVERSED: backward backwards inverted reversed swapped flipped misplaced off switched transposed upside-down
        mixed-up
    CHANGED: changed altered flipped inverted swapped modified mutated tweaked removed dropped reversed omitted deleted
        replaced introduced injected inserted planted broke skipped missed messed
    VARIANT: version code program variant solution answer implementation attempt approach snippet example function
        method line
    RIGHT: right correct proper intended true original real actual expected required accurate
    FOREVER: forever endlessly infinitely indefinitely
    ENDLESS: infinite endless never-ending unbounded infinitely endlessly
    CYCLE: loop loops recursion recursing looping cycle recursive
    DOES: computes uses returns adds subtracts multiplies divides sums sorts starts stops counts compares prints checks
        assigns yields gives takes reads concatenates appends iterates decrements increments produces calculates finds
        calls doubles squares cubes swaps applies considers treats ends begins writes puts sets moves used using
        returning adding computing summing returned computed added sorted multiplying dividing sorting
    OPINION: think guess hope believe suppose assume doubt
    ONE: one two code
    EXTREME: many few small large big short long far early late high low much little deep shallow
    """
)


def _rules(text: str) -> list[str]:
    """Return the rules of a table, each of which ends with a semicolon; lines with `#` name a group."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [" ".join(rule.split()) for rule in re.sub(r"\|\s+", "|", " ".join(lines)).split(" ;") if rule.strip()]


_CLEAR = _rules(
    """
    # About the program, whatever else the sentence contains.
    wrong|incorrect|bad|erroneous|broken|inconsistent|inaccurate PART !of|from|DATA|is ;
    missing a|an|the|its|closing|opening|final? _? PART !of|from|DATA ;
    PART BE ADV* missing|absent|wrong|incorrect|off $ ;
    undefined|undeclared|uninitialized|nonexistent|unknown name|variable|function|module|method|identifier|
        reference|attribute ;
    invalid syntax ; not valid python|syntax|code ;
    error|errors|fault|mistake|problem|issue _? _? here|below|above ;
    contains|introduces|has|simulate*|inject*|make|makes|making|includes|exhibits|demonstrates a|an|the|one|
        some _? STATE|problem|trap|catch !ERRNOUN|DATA ;
    logic|logical|semantic|hidden|obvious|timeout|name|small|tiny|runtime|subtle|syntax error|errors|problem|
        issue|slip|inconsistency ;
    spot|notice|see|find|guess the STATE|problem ; err :|, ; ^ error : !COND|on|message ;
    ^ error|errors|wrong|incorrect|missing|broken|bad $ ; AUX ADV* CAUSE|raise|throw a|an|the? ERRNAME ;
    SELF|^ ADV* AUX ADV* FAILS|raise|throw|never ; SELF CAUSE a|an|the? ERRNAME ;
    FAILS|crashes on|for|with CODE ; SELF ADV* FAILS on|for|with|at|as|here|in|COND ;
    SHALL have|really|actually|instead|rather|probably ;
    SHALL be a|an|the? CODE|plus|minus|times|outside|reset|indented|inclusive|strict* ;
    SELF|PART|CODE SHALL be? ADV* divide|multiply|subtract|start|stop|compare|use|increment ; no base-case ;
    AUX not ADV* handle|check|account|consider|cover|work|terminate|compile ;
    without ADV* increment*|updat*|initiali*|advanc*|defin*|declar*|decrement* ;
    BE not|never ADV* defin*|import*|increment*|updat*|declar*|initiali*|decrement*|advanced|called|reset|closed|
        handled ;
    never breaks|exits|ends|stops|terminates|finishes|reached|reaches|halts|incremented|updated|called|advances ;
    divides|multiplies|uses|returns|compares|adds|subtracts|computes|starts|stops|iterates|sorts|assigns|
        increments _? _? the|a|an? BADLY ;
    variable|parameter|argument|result|branch|CODE BE never|not used|read|needed|called|updated ;
    CODE|counter|pointer|variable|a|i BE NEG chang*|modif*|mov* ;
    no such method|function|attribute|module|name|variable|operator ;
    method|function|attribute|module|name|variable|operator|global that|which|AUX AUX? not exist* ;
    AUX be|have STATE|BADLY|inaccurate ;
    """
)
_LEAKS = _rules(
    """
    one|two _ short|early|late|behind|less|off ;
    before giving|assigning|defining|declaring|setting|importing it|them|the|any|its|a ;
    recursion|loop|function|return|call|recursive without a|an|any|the ;
    makes|causes|forces the? _ ADV* return|give|produce|stop|skip|be|ACT ;
    SELF only DOES|works|handles|covers|gives|checks|counts|looks ; SELF|^ ADV* DOES ... , not ;
    becomes|become none|null|nan|empty|zero|negative|false|CODE ;
    although|though|even-though they|those|these|this ;
    ^|CODE would !need|like|want|prefer|look ; RUIN ; go|goes|stay|stays|left|remain|remains un* ;
    left|leaves|leaving behind ;
    what it|we|you|this ADV* want|wants|need|needs|expects|expect ;
    almost|nearly|practically always|never|all|every ; BE always CODE|true|false|zero|empty|none|the ;
    returns|exits|stops|ends|breaks|leaves|stopping|returning _? after|in|at|on the? first|one|single iteration|
        pass|element|character|item|round|loop|step|word|row ;
    because|due of|to the|a? PART ; no initial|default|final|base|closing|opening _ !needed|necessary|required ;
    # States of code, of results, and without a subject.
    error|fault|mistake|problem|errors|err BE? occurs|lies|lives|sits|in|because ;
    STATE|BADLY _? PART|RESULT|SELF|VARIANT ; STATE|BADLY $ ; ^ STATE|BADLY ; STATE ;
    PART _? BE? ADV? missing|absent|wrong|incorrect|omitted|removed|dropped|gone|unhandled|unchecked ;
    PART _ left off|out ; no _? PART !needed|necessary|required ; no way|chance to ;
    nothing stops|ends|increments|updates|changes|breaks|checks ;
    # Actions that are not done.
    AUX not ADV* !PROPERTY _ ; BE not|never ADV* been|being|get? ADV* ACT ;
    BE NEG ADV* right|correct|accurate|enough|sufficient|inclusive|exact|complete|safe|robust|general|ideal ;
    never ADV* BE? ADV* ACT ; ^ never|not ADV* ACT ;
    ^ not CODE|quite|right|correct|accurate|enough|handled|inclusive|closed ;
    not ADV* as? expected|intended|desired|wanted|planned|asked|requested|quite ; without ADV* ACT|PART ;
    without a|an|the|any PART ; BE not|never ADV* in scope ; out of scope ; unable to ; fail* to ;
    has|have no effect ; does nothing ; stays|remains CODE|zero|the|unchanged|at|constant|true|false ;
    before it|they|being ADV* BE? exist*|defin*|assign*|declar*|initiali*|bound|set ;
    # Missing parts.
    LACK the|its|an|a|one|any|every|some? _? POSITION|PART ; SELF ADV* LOSE|lose|miss ; ^ ADV* LOSE ;
    BE lost|omitted|gone ; left|leave|leaves|leaving out|off|undone ;
    # Contrast with the request or the intention.
    INSTEAD the|a|by|using|with|at? CODE|RIGHT|plus|minus|and|or|append|extend|yield|full|whole ;
    DOES ... INSTEAD|instead ; , not CODE ; not|never CODE $ ; BUT ... TASK ... ASK ;
    BUT ADV* it|this|that|the|we? !you _? ADV* BE|AUX|ADV* not|never|LACK|FAILS|ignores ;
    BUT ADV* it|this|that|the|we _? DOES ; contrary to ; unlike|against the|what TASK|task ;
    not what TASK|the|we|was|is ; supposed|meant|ought|intended to ; expected ... got|but|actual|gets|yet ;
    where CODE ... needed|required|expected|meant|intended ;
    where the|a|an ... is|was needed|required|expected|meant|intended|called ; needs|requires|wants|need CODE ;
    BE ... what we|you ADV* want|wants|need|needs|intended|meant ;
    the right|correct|proper|intended|true|actual|required _ _? _? is|was|would|should|needs|has|uses|reads|must|
        ends|starts ;
    RIGHT VARIANT|way|form|condition|operator|formula|one :|would|is|should ; everyone|everybody knows ;
    PART|CODE BE ADV* REVERSED ; PART got? REVERSED ; one|two too EXTREME ; too early|late|soon ;
    EXTREME by one|two ; counts|counted|adds|added|included|processed twice ; slip|slips through|by|past ;
    one off ; off by _ ; SELF|CODE|that ADV* looks|seems|appears right|correct|fine|like|valid|good|to ;
    ^ looks|seems|appears right|correct|fine|like|valid|good|to ;
    # What should be.
    ^ SHALL ; SELF|PART|RESULT|CODE SHALL ; SHALL have|really|actually|instead|rather|probably ;
    SHALL be CODE|plus|minus|times|inside|outside|before|reset|indented|inclusive|strict* ; ought to ;
    could|would|might have been|used ; would be better|correct|right|needed|required|fine ;
    # Confessions and repairs.
    on purpose ; my bad ; i|we have? ADV* CHANGED ; ^ CHANGED from|to|so|on|for|here|the|this ;
    to break the|this|its ; modified|altered|tweaked|mutated|failing|alternate|imperfect VARIANT ;
    fix|fixes this|it|me|later|here|needed|would|is|the ; to|should|must|not be? fixed|corrected|repaired ;
    needs|need fix*|repair|correction ; spot|notice|see the STATE|problem ;
    the catch|trick|trouble|culprit|problem|issue here|with|is|lies|in ; problem here|with|is ;
    has|have|contains|with|introduces|causes a|an|the|one|this _? problem|issue|trap|catch ;
    BE introduced|injected|planted|inserted|seeded ; the|this student|learner|candidate ; kind|type of STATE ;
    not sure ; i OPINION ; ^ maybe|probably|perhaps ; hold on ; ^ wait $ ;
    ^ wait this|that|it|no|what|why|we|i|is|should ; good|close enough ; works on my ;
    watch out ; CODE ? _ ; ? ? ; who|nobody|no-one cares|needs|will|knows ;
    ^ hint|spoiler|warning|beware|danger : ;
    # Consequences.
    AUX|to ADV* FAILS|break|error|overflow|never ; SELF ADV* FAILS ; ^ ADV* FAILS ; , FAILS ;
    FAILS on|for|with|at|as|here|in|because|COND ; blow* up ; CAUSE a|an|the|some|uncaught|unhandled? ERRNAME ;
    ^ a|an? ERRNAME ; BLUNDER ; CAUSE _? _? BADLY ; BE BADLY ; goes|go|gone wrong|awry|bad|past|beyond|off|out ;
    runs|reads|walks|steps|falls off|past|beyond|out|over|outside ; ENDLESS CYCLE ;
    loops|loop|runs|spins|recurses|repeats FOREVER ; FOREVER $ ; gets|get stuck ; stack overflow ; deadlock* ;
    times out ; too|very|extremely|terribly slow ; loses|lose precision|information|accuracy ;
    integer|floor division truncates ; takes|take forever|ages ; blow-up ;
    # Limits, side effects and wrong objects.
    works|looks|look|handles|checks|covers|tested|valid|approximate only ; not ADV* exact|precise|accurate ;
    dead code ; trap ; shadow* ; opposite of ; quietly ; silently !ignor*|skip*|return*|fail*|continu* _ ;
    swapped|mixed-up|crossed argument*|operand*|parameter* ; other|wrong way around|round ; _ INSTEAD _ $ ;
    unmatched|mismatched|unbalanced|invalid PART|indentation ; shared between|across calls|instances|runs|objects ;
    mutat*|modif*|remov*|delet*|chang* ... while|during iterat*|loop* ; chang*|alter* the result|outcome|meaning ;
    where ... BE wanted ; SHALL not $ ; not handled|covered|checked|tested|considered $ ; BE not there $ ;
    one|two _ too EXTREME ; slightly different|off|too ; BE off for|when|if ;
    requirement|rule|condition ... BE dropped|skipped|ignored|omitted|lost ;
    stops|ends|exits one|two|a _ before|after ; AUX normally|usually|typically|ordinarily|otherwise ;
    normally|ordinarily _ would|SHALL ; BE NEG ADV* taken|given|kept|met|paid|done ; CODE , expected ;
    ^|SELF only DOES|considers|looks|processes ; AUX ADV* LOSE|miss|lose|skip|drop ; double count* ;
    works|handles|fine|correct|enough for? most|many|some cases|inputs ; not really|truly|actually ;
    never ADV* *ed|bottoms|comes|goes|gets|becomes ; keeps|keep *ing itself ; break|breaks this ;
    hits|exceeds|reaches the? recursion|stack ; takes minutes|hours|days|years ; makes ... too EXTREME ;
    PART BE inside|outside|within the? loop|function|class|body ; extra|stray|superfluous PART !of|to|for ;
    has|have no attribute|method|member ;
    AUX not ADV* hold|pass|match|agree $ ; can|could you tell|spot|see|guess|find ;
    ^ _ replaced|exchanged|substituted by|with|for ; tries|trying to concatenate|add|index|divide ;
    which it|they|this BE|AUX not $ ; mixes|mixing|mix up ; BE mixed-up ; spelled|spelt|written differently ;
    """
)
_RELEASES = _rules(
    """
    this|it|that|which|code|function|program|script|solution|query SHALL print|give|help|work|return|do|ensure|
        provide|output|produce|make|improve|now|allow|handle|display|show|run|yield|solve|cover _? ;
    SHALL always|never|only|not|already|also|still _ ; AUX not ADV* fail|crash|overflow|hang ;
    AUX not ADV* break for|on|with|when ;
    # Documented exceptions, and the exceptions of the language.
    raise|raises|raised|throws|throw|raising a|an|the? ERRNAME &COND|on|for|in|with ;
    raise|raises|raised|throws|throw|raising a|an|the? !BLUNDER ERRNAME &$ ; ERRNAME : &COND|in|on|raised|for ;
    HANDLE _? _? ERRNAME ; COND ... raises|throws ERRNAME|error|exception ; ^ BLUNDER : &COND|in|for ;
    # States of data, in conditions, and their handling.
    COND !SELF _? _? _? _? _? _? STATE|missing|LOSE|BADLY|FAILS|LACK DATA? ; STATE|BADLY|missing -? _? DATA ;
    DATA _? BE|that|REL ADV* STATE|missing ; HANDLE _? _? _? STATE|BADLY|missing _? DATA? ;
    STATE BE? BE? handled|caught|logged|reported|ignored|skipped|raised|returned|printed|thrown|displayed|shown|
        counted|rejected|swallowed|occurs|occurred ;
    error|errors ERRNOUN ; ERRADJ error|errors|exception|exceptions ;
    error|errors BE|per|between|small|large|below ; exception|exceptions class|handl*|type|hierarchy|BE ;
    broken down|into|up|by|out ; and|or|of|custom|other a|an? error|exception|errors|exceptions ;
    line|page breaks ; number|list|set|count|sum|share|rate of _? STATE ; has|have|with no STATE ;
    fail|fails fast|gracefully|silently|early|the ; fault* toleran* ; until no? longer? STATE|FAILS ;
    the problem|issue is|date to? ; page faults ; STATE raised|occurs ;
    # Negation of data, and of what sound programs do not do.
    COND !SELF _? _? _? _? _? _? NEG ADV* _? _? ; DATA that|which|who|whose|where _? _? BE|AUX NEG ADV* !ACT _ ;
    so that _? _? BE|AUX NEG ADV* _ _? ;
    that|which|who|where _? _? AUX NEG ADV* _ ; can not be PROPERTY|divided|negative|zero ;
    do not PROPERTY|ACT ^|,|$ ;
    AUX not count|include|return|consider|add as|duplicates|spaces|itself|anything|towards|the ;
    no more|longer|other|extra|additional|further|two|such|duplicates|duplicate|solution|match|path|element|item|
        error|need|input|arg|value|word|number|data|file|result|key|user|digit|letter|space ;
    never negative|empty|none|zero|null|more|less|PROPERTY|happens|happen|both|raised|repeated ;
    never ADV* ACT|PROPERTY twice|again|more ; BE NEG PROPERTY|needed|required|allowed ;
    not|never only|just|too|more|less|all|necessarily|included|counting|yet ;
    DATA BE NEG sorted|included|counted|used|found ;
    without extra|modifying|changing|using|loss|spaces|duplicates|replacement|repetition|importing|recursion|
        copying|sorting ;
    without ACT duplicates|extra|again|it|them|twice ; AUX not end|start|stop with|in ;
    no checks|check BE needed|necessary ;
    # Endless loops avoided, breaks that are meant, and the rest that sound programs say.
    avoid*|prevent*|no|never|without|against|guard*|stop*|handl*|catch*|detect*|break* _? _? _? ENDLESS|stack|
        FOREVER|out|BADLY|FAILS CYCLE|overflow|of? ;
    runs|run|loops|loop FOREVER? until ;
    break|breaks the|this|out|down|into|up|ties|early|if|when|lines|long|a|at|apart|once|as ;
    SHALL be able|called|used|passed|given|provided|run|sorted|non*|positive|negative|at|true|false|fine|safe|
        fast|enough|easy|unique|empty|in|installed|between|integers|strings|numbers|distinct|equal|greater|less|
        smaller|larger|of|lower|upper|printed|returned|one|valid|a|an|the ;
    ^ SHALL happen|work|return|print|output|log|show|display|give|raise|have|help|equal|contain|yield|produce|see|
        match|look|pass ;
    function|method|class|program|caller|user|users|you|they|DATA|result|output|code SHALL ;
    BE intended|meant to !be ;
    supposed|meant|intended to be? used|called|run|help|show|simulate|demonstrate|keep|make|sorted ;
    as the TASK ASK ; use|used INSTEAD ; i|we used INSTEAD ; use|used|using a|an _ INSTEAD a|an|the? _ ;
    returns a|an new? DATA|_ INSTEAD a|an ;
    DATA BE REVERSED|lost ; fixed CODE|number|size|DATA|constant|_ ;
    fix the seed|width|size|order|length|number|precision|DATA ;
    the RIGHT order|place|position|child|side|half|half|part ; needs|requires python|numpy ; in case ;
    ignores case|white*|blank*|punctuation ;
    skips|drops|ignores|excludes|removes the|any|all|its? header|blank|empty|punctuation|comment*|duplicate*|
        invalid|null|leading|trailing|vowels ;
    if we|it|this|there SHALL ; to avoid|prevent ... LACK|counting|counted ;
    one|a|two|all|no li*|game|turn|point|round BE? lost ;
    infinite|endless series|sequence|generator|stream|precision|values ;
    raise|raises|raised|throw|throws|throwing|raising a|an|the? error|exception|errors|exceptions ;
    BE seen|visited|stored|counted only? once ; lines|line BE|that|are STATE ;
    """
)

_FOREIGN = re.compile(
    r"错误(?!处理|信息|消息|提示|码|率|日志|输入|类型|的(?:输入|密码|格式|参数))|出错(?!时|则|处理|信息)|有误|不对"
    r"|不正确|本应|应为|应该(?:是|为|用|改|加|减|乘|除)|故意|漏(?:掉|了|写)|遗漏|忘(?:了|记)|少了|多了|缺少(?!参数|值"
    r"|文件)|写错|而(?:不是|非)|(?:没有|未)(?:更新|检查|处理|考虑|返回|定义|声明|导入|递增|初始化|关闭|转换)|死循环"
    r"|无限(?:循环|递归)|永远(?:不会|循环)|会(?:报错|崩溃|出错|失败|抛出)|越界|偏差|差一|拼写|間違|誤り|バグ"
    r"|はず(?:です|だ)|べき|忘れ|わざと|抜けて|無限ループ|잘못|빠뜨|무한|오류(?! ?(?:처리|메시지))"
    r"|\b(?:fehler(?!behandlung|meldung|code|quote|toleranz|wert)\w*|falsch\w*|sollte\w*|eigentlich|anstatt|statt"
    r"|vergess\w*|absichtlich|versehentlich|fehlt|fehlen|stimmt nicht|endlos\w*|müsste\w*|tippfehler|stürzt ab"
    r"|nie (?:erhöht|erreicht)|debería\w*|incorrect[oa]s?|equivocad\w+|olvid\w+|en (?:lugar|vez) de|a propósito"
    r"|falta\b(?! de)|bucle infinito|no (?:funciona|termina|se (?:actualiza|incrementa|cierra))|erróne\w+"
    r"|mal (?:calculad|escrit|puest)\w+|devrait|faux|fausse|incorrecte|oubli\w*|au lieu d[eu]|exprès|manqu(?:e|ant)\w*"
    r"|boucle infinie|erreur ici|ошибк\w*|неправильн\w*|должн\w*|забы\w*|вместо|намеренно|бесконечн\w*|пропущен\w*"
    r"|deveria|esquec\w+|em vez de|de propósito|faltando|sbagliat\w+|dovrebbe|dimenticat\w+|invece di|apposta)\b"
    r"|[\U0001f41b\u274c\u26a0\u2757\U0001f6a8\U0001f61c\U0001f609\U0001f608]",
    re.IGNORECASE,
)
"""Words for faults in other languages, and emoji."""
_STATED_KIND = re.compile(
    r"\b(?:error|fault|bug|mistake)[ -](?:type|kind|category|class)\s*[:=]\s*"
    r"(?:logic(?:al)?|syntax|type|name|timeout)\b"
    r"|\A\W*(?:kind|category)\s*[:=]\s*(?:logic(?:al)?|syntax|timeout)\b|\A\W*logical\W*\Z",
    re.IGNORECASE,
)
"""Statements of the kind of fault that the prompt requests."""

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z`\"'(0-9])|\n|(?<=[\u3002\uff01\uff1f])")
_MARKS = re.compile(
    r"^[ \t]*(?:#+!?|//+!?|/\*+|\*+/?|--|<!--|\"{3}|'{3})[ \t]*|(?:\*/|-->|\"{3}|'{3})[ \t]*$", re.MULTILINE
)
_JOINED = (
    (re.compile(r"(?:n't|n\u2019t)\b"), " not"),
    (re.compile(r"\b(?:ca|wo)(?= not\b)"), "will"),
    (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"(?:'|\u2019)(?:ve|d|re|ll|m)\b"), " have"),
    (re.compile(r"\b(it|that|here|this|what|there)(?:'|\u2019)s\b"), r"\1 is"),
    (
        re.compile(
            r"\b(?:instead of|rather than|in place of|as opposed to|(?:base|edge|corner) cases?|even though|mixed up"
            r"|no one)\b"
        ),
        lambda found: found[0].replace(" ", "-"),
    ),
    (re.compile(r"(?<=[a-z]{2}) [-\u2013\u2014]+>? (?=[a-z]{2})"), " , "),
)
_EMPHASIS_OR_A = re.compile(r"[*_]{2}|\ba(?=\s*[-+*/%<>=])|(?<=[-+*/%<>=]\s)a\b")
_TOKEN = re.compile(
    r"`[^`\n]*`|[^\W\d_][^\W_]*(?:[-'\u2019][^\W\d_]+)*(?![\w(\[]|\.\w)|[,;:.()\u2014\u2013](?=\s|$|[^\w])|[(]|\?"
    r"|[^\s,;]+|[,;]"
)
_WORD = re.compile(r"[^\W\d_]{2,}(?:[-'\u2019][^\W\d_]+)*|[ai]")
_CLAUSE_ENDS = ",;:.()\u2014\u2013"


def _compile_lexicon() -> tuple[dict[str, list[str]], list[tuple[str, str, str]]]:
    """Return the classes of words, and those of prefixes and suffixes (`stem*`, `*ending`)."""
    words: dict[str, list[str]] = {}
    stems = []
    for name, entries in _LEXICON.items():
        for entry in entries:
            if entry.startswith("*"):
                stems.append(("", entry[1:], name))
            elif entry.endswith("*"):
                stems.append((entry[:-1], "", name))
            else:
                words.setdefault(entry, []).append(name)
    return words, stems


_WORD_CLASSES, _STEM_CLASSES = _compile_lexicon()
_ANY_WORD = r"[^,;:.()?!\s/][^\s/]*/\S* "
_ANCHORS = {
    "^": r"(?:\A|(?<=[,;:.(]/ ))",
    "$": r"(?=\Z|[,;:.()?!]/)",
    "...": rf"(?:{_ANY_WORD}){{0,8}}?",
    ",": r"[,;.(]/ ",
    ":": r":/ ",
    "?": r"\?/ ",
}


def _element(written: str) -> str:
    """Return the regular expression for one element of a rule."""
    if written in _ANCHORS:
        return _ANCHORS[written]
    if written[0] in "!&":
        return f"(?{'!' if written[0] == '!' else '='}{_element(written[1:])})"
    quantifier = written[-1] if written[-1] == "?" or (written[-1] == "*" and written[:-1].isupper()) else ""
    quantifier, written = {"": "", "?": "?", "*": "{0,3}"}[quantifier], written[:-1] if quantifier else written
    options = []
    for option in written.split("|"):
        if option == "_":
            options.append(_ANY_WORD)
        elif option in _ANCHORS:
            options.append(_ANCHORS[option])
        elif option.isupper():
            options.append(rf"[^\s/]+/\S*\|{option}\|\S* ")
        else:
            options.append("".join(r"[^\s/]*" if char == "*" else re.escape(char) for char in option) + r"/\S* ")
    return f"(?:{'|'.join(options)}){quantifier}"


def _rule(written: str) -> str:
    return r"(?<!\S)" + "".join(map(_element, written.split()))


_CLEAR_RULE = re.compile("|".join(f"(?:{_rule(written)})" for written in ("FAULT", *_CLEAR)))
_RULE = re.compile("|".join(f"(?:{_rule(written)})" for written in _LEAKS))
_RELEASE = tuple(re.compile(_rule(written)) for written in _RELEASES)
_STEM_LENGTH = 5
_FUNCTION_WORDS = frozenset(
    "a an the is are was be been it this that which here what we i you should would ought must not never no but yet "
    "only to of in on at for with by as so instead rather than really wait maybe probably perhaps code".split()
)

_SYNONYMS = tuple(
    frozenset(words.split())
    for words in (
        "wrong wrongly incorrect incorrectly erroneous mistaken mistake mistakes",
        "broken faulty defective damaged fault faults defect defects",
        "typo typos misspelled misspelling misspellings mistyped spelling",
        "error errors failure failures fatal fail failed exception exceptions",
    )
)
_FAULT_NAME = re.compile(
    r"(?<![a-z])(?P<word>bug|buggy|bugged|bad|faulty|fault|wrong|incorrect|broken|erroneous|flawed|oops|typo|mistaken"
    r"|mistake|incorrectly|wrongly|sabotaged|defective|misspelled|mistyped|fixme|off_by_one|inaccurate)(?![a-z])"
)
_DATA_NAME = re.compile(
    r"_?(?:\w+_)*(?:\w{3,}(?<!s)s|row|record|file|token|pair|entry|version|name|request|response|password|ip|email"
    r"|host|node|path|apple|day|char(?:acter)?|answer|guess|attempt|pin|letter|input|type|try|item|word|ind(?:ex|ices)"
    r"|count(?:er)?|number|num|key|format|value|choice|link|pixel|line|question|pred|label|url|id|arg|data|user|case"
    r"|rate|ratio|tracker|report|tolerance|handler|list|set)(?:_?\d+)?"
)
_MIN_MESSAGE_WORDS = 3
_ERROR_PREFIX = re.compile(r"\W*error\b", re.IGNORECASE)
_DEFINED = re.compile(r"\b(?:def|class|function|func|fn)[ \t]+([^\W\d]\w*)")
_CORRECT_WORD = re.compile(r"fixed|correct(?:ed|ly)?|proper(?:ly)?|original")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_FAULT_NOUN = r"(?:bugs?|errors?|mistakes?|faults?|problems?|issues?)"
_CODE_NOUN = r"(?:code|program|function|query|script|snippet|statement|loop)"
_ABOUT_FAULTS = re.compile(
    rf"(?:^|[.;:!?\n]\s*|\b(?:please|and|then|to|you|can|could) )(?:(?:debug|fix|repair|correct|diagnose|troubleshoot"
    rf"|resolve)\b[^.\n]{{0,60}}\b(?:{_FAULT_NOUN}|{_CODE_NOUN}|it)\b|(?:find|identify|spot|locate|explain|detect"
    rf"|determine|examine|discuss)\b[^.\n]{{0,40}}\b{_FAULT_NOUN}\b[^.\n]{{0,30}}\b{_CODE_NOUN}\b)|\b(?:syntax"
    rf"|logic(?:al)?) (?:errors?|mistakes?)\b"
    r"|\b(?:what|why)\b[^.\n]{0,40}\b(?:wrong|error|fail\w*|not work\w*|bug)\b"
    rf"|\b(?:faulty|buggy|broken|incorrect|erroneous) (?:{_CODE_NOUN}|version)\b",
    re.IGNORECASE,
)
"""Tasks about faults, whose answers may contain words for faults."""
_ADMISSION = re.compile(
    r"\b(?:deliberate(?:ly)?|(?:un)?intentional(?:ly)?|on purpose|purposely|off[- ]by[- ]one|sabotag\w+)\b"
    r"|\b(?:this|the) (?:code|function|program|version|implementation|solution)\b[^.\n]*"
    r"\b(?:bug\w*|wrong|faulty|incorrect|broken|flawed|mistake)\b",
    re.IGNORECASE,
)


def find_leak(fault: str, *, instruction: str = "", correct: str = "") -> str | None:
    """Return the first expression by which a faulty answer reveals its fault, or `None`.

    Words of the instruction and of the correct answer to it are not leaks.

    Example:

    ```python
    >>> find_leak("total = a - b  # a bug"), find_leak('raise ValueError("wrong input")  # reject wrong input')
    ('bug', None)

    ```
    """
    subject = _Subject(instruction, correct)
    if _ABOUT_FAULTS.search(instruction):
        admissions = (found[0] for found in _ADMISSION.finditer(fault))
        return next((words for words in admissions if not subject.has_words_of(words)), None)
    _, blocks = split_answer(fault)
    for remark in remarks(fault):
        for sentence in _sentences(remark):
            if (found := _leak_in(sentence, subject)) is not None:
                return found
    for language, code in blocks:
        for name in _fault_names(without_strings(code, language)):
            if not subject.mentions(name):
                return name
        for variant in _correct_variants(code):
            if variant not in subject.names:
                return variant
        for message in string_literals(code, language):
            if (found := _leak_in_message(message, subject)) is not None:
                return found
    return None


class _Subject:
    """Instruction and correct answer of a pair."""

    def __init__(self, instruction: str, correct: str) -> None:
        _, blocks = split_answer(correct)
        said_words = re.findall(r"[\w'-]+", f"{instruction} {correct}".lower())
        self._text = f" {' '.join(said_words)} "
        self.names = {*_fault_names(instruction), *_fault_names(correct), *_DEFINED.findall(correct)}
        said = (instruction, *remarks(correct))
        self._sentences = {_key(sentence) for text in said for sentence in _sentences(text)}
        words = re.findall(r"[a-z]{3,}", _CAMEL.sub(" ", f"{instruction} {correct}").lower())
        self._stems = {word[:_STEM_LENGTH] for word in words}
        lines = (line for language, code in blocks for line in without_comments(code, language).splitlines())
        self._lines = {key for line in lines if len(key := _key(line)) > 3}

    def has_sentence(self, sentence: str) -> bool:
        """Return whether the instruction or the correct answer contains the same sentence."""
        return _key(sentence) in self._sentences

    def has_phrase(self, words: str) -> bool:
        """Return whether the instruction or the correct answer contains the same words in the same order."""
        return not set(words.split()) <= _FUNCTION_WORDS and f" {words} " in self._text

    def has_words_of(self, text: str) -> bool:
        """Return whether all words of a text, by their stems, occur in the instruction or the correct answer."""
        words = re.findall(r"[a-z]{3,}", text.lower())
        return bool(words) and all(word[:_STEM_LENGTH] in self._stems for word in words)

    def mentions(self, word: str) -> bool:
        """Return whether a word or a synonym occurs in the instruction or the correct answer."""
        return self.has_words_of(word) or any(
            word in words and any(f" {other} " in self._text for other in words) for words in _SYNONYMS
        )

    def has_code(self, remark: str) -> bool:
        """Return whether a remark is a line of code of the correct answer, which the fault disables."""
        return re.search(r"[=(+*/%-]", remark) is not None and _key(remark) in self._lines


def _key(text: str) -> str:
    return "".join(_MARKS.sub("", text).lower().split())


def _sentences(remark: str) -> Iterator[str]:
    """Yield the sentences of a remark without comment marks; lines that continue in lower case are joined."""
    plain = _MARKS.sub("", remark.strip())
    plain = re.sub(r"[ \t]*\n[ \t]*(?=[a-z])", " ", plain)
    return (sentence.strip() for sentence in _SENTENCE_END.split(plain) if sentence.strip())


def _leak_in(sentence: str, subject: _Subject) -> str | None:
    if subject.has_sentence(sentence):
        return None
    if subject.has_code(sentence):
        return sentence
    stated = _FOREIGN.search(sentence) or _STATED_KIND.search(sentence)
    if stated is not None and not subject.has_phrase(stated[0].lower()):
        return stated[0]
    tagged = _tagged(sentence, subject)
    if (clear := _first(_CLEAR_RULE, tagged, subject)) is not None:
        return clear
    for release in _RELEASE:
        tagged = release.sub(",/ ", tagged)
    return _first(_RULE, tagged, subject)


def _leak_in_message(literal: str, subject: _Subject) -> str | None:
    """Return the words by which a string of the program reveals the fault; mere reports of errors do not."""
    if (admission := _ADMISSION.search(literal)) and not subject.has_words_of(admission[0]):
        return admission[0]
    if len(_WORD.findall(literal)) < _MIN_MESSAGE_WORDS:
        return None
    message = _ERROR_PREFIX.sub("", literal)
    leaks = (_first(_CLEAR_RULE, _tagged(sentence, subject), subject) for sentence in _sentences(message))
    return next((words for words in leaks if words is not None), None)


def _first(rule: re.Pattern[str], tagged: str, subject: _Subject) -> str | None:
    """Return the first words that match a rule and do not occur in the subject."""
    found = (_words(match[0]) for match in rule.finditer(tagged))
    return next((words for words in found if not subject.has_phrase(words)), None)


def _tagged(sentence: str, subject: _Subject) -> str:
    """Return the words of a sentence with their classes, as in `never/|NEG| updated/|ACT| `."""
    text = _EMPHASIS_OR_A.sub(lambda found: "0" if found[0] == "a" else "", sentence.lower())
    for pattern, replacement in _JOINED:
        text = pattern.sub(replacement, text)
    return "".join(_tag(token, subject) for token in _TOKEN.findall(text))


def _tag(token: str, subject: _Subject) -> str:
    if token in _CLAUSE_ENDS or token in "?!":
        return f"{token}/ "
    if not _WORD.fullmatch(token):
        return "code/|CODE| "
    classes = [
        *_WORD_CLASSES.get(token, ()),
        *(
            name
            for stem, ending, name in _STEM_CLASSES
            if token.startswith(stem) and token.endswith(ending) and token != ending
        ),
    ]
    if ("FAULT" in classes or "STATE" in classes) and subject.mentions(token):
        classes = [name for name in classes if name not in ("FAULT", "STATE", "BADLY", "BLUNDER", "ERRNAME")]
    return f"{token}/|{'||'.join(classes)}| "


def _words(tagged: str) -> str:
    return " ".join(token.partition("/")[0] for token in tagged.split())


def _correct_variants(code: str) -> Iterator[str]:
    """Yield names of functions that add a word for correctness to the name of another function."""
    names = {_CAMEL.sub("_", name).lower(): name for name in _DEFINED.findall(code)}
    for plain, name in names.items():
        for other in names:
            if other != plain and other in plain and _CORRECT_WORD.fullmatch(plain.replace(other, "", 1).strip("_")):
                yield name


def _fault_names(code: str) -> Iterator[str]:
    """Yield words for faults in names, except in names of data ("bad_rows", "wrong_count")."""
    for name in _IDENTIFIER.findall(code):
        plain = _CAMEL.sub("_", name).lower()
        found = None if keyword.iskeyword(name) else _FAULT_NAME.search(plain)
        if found and not (found.end() < len(plain) and _DATA_NAME.fullmatch(plain[found.end() :])):
            yield found["word"]
