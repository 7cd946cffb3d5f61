"""How replies decline in languages other than English: the usual openings, written for demur.

Regular expressions over plain text: see `_plain_text`. Not checked by native speakers.
"""

from collections.abc import Mapping

OTHER_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "de": (
        r"\bich (?:kann|darf|werde|möchte|will)\b.{0,60}\b(?:nicht|keine?n?)\b",
        r"\b(?:kann|darf|werde|möchte) ich\b.{0,60}\b(?:nicht|keine?n?)\b",
        r"\bich (?:bin nicht in der lage|bin außerstande|muss (?:das |diese anfrage )?ablehnen|"
        r"lehne)\b",
        r"\btut mir leid, (?:aber )?(?:ich|da|das|bei)\b.{0,60}\b(?:nicht|keine?n?)\b",
    ),
    "fr": (
        r"\bje (?:ne (?:peux|puis|pourrai|vais|souhaite|suis)|refuse|dois (?:refuser|décliner))\b",
        r"\bil m'est (?:impossible|interdit)\b",
        r"\bje n'(?:ai pas le droit|aiderai|encourage)\b",
        r"\bje suis (?:désolée?|navrée?)\b.{0,60}(?:\bne\b|\bn'|\bimpossible\b)",
    ),
    "es": (
        r"\bno (?:puedo|podré|podría|voy a|debo|quiero|me es posible|estoy autorizad)",
        r"\b(?:debo|tengo que) (?:rechazar|negarme|declinar)\b|\bme niego\b|\bme es imposible\b",
    ),
    "it": (
        r"\bnon (?:posso|potrò|sono in grado|mi è possibile|intendo|voglio|ti aiuterò)\b",
        r"\b(?:devo|mi vedo costretto a) (?:rifiutare|declinare)\b|\bmi rifiuto\b",
    ),
    "pt": (
        r"\bnão (?:posso|poderei|vou|devo|consigo|me é possível|estou autorizad|sou capaz)",
        r"\b(?:devo|tenho que) (?:recusar|rejeitar)\b|\brecuso-me\b|\bme recuso\b",
    ),
    "nl": (
        r"\b(?:ik (?:kan|mag|zal|wil)|(?:kan|mag|zal|wil) ik)\b.{0,50}\b(?:niet|geen)\b",
        r"\bik (?:moet (?:dit |dat )?weigeren|weiger)\b",
    ),
    "pl": (r"\bnie (?:mogę|moge|będę|jestem w stanie|pomogę|udzielę|wolno mi)\b|\bodmawiam\b",),
    "cs": (r"\b(?:nemohu|nemůžu|nesmím|nebudu|nejsem schopen|odmítám)\b",),
    "sv": (
        r"\bjag (?:kan|får|vill|tänker|kommer)\b.{0,12}\binte\b|\b(?:kan|får) jag\b.{0,30}\binte\b",
        r"\bjag måste (?:neka|avböja)\b",
    ),
    "fi": (r"\b(?:en (?:voi|pysty|saa|aio|halua|auta)|valitettavasti en)\b",),
    "hu": (r"\bnem (?:tudok|segíthetek|adhatok|tehetem|áll módomban|vagyok hajlandó)\b",),
    "ro": (r"\bnu (?:pot|voi|îmi este permis|te pot|vă pot|sunt în măsură)\b",),
    "el": (r"(?<!\w)δεν (?:μπορώ|θα|είμαι σε θέση|επιτρέπεται)(?!\w)",),
    "tr": (
        r"\b(?:yardımcı olama(?:m|yacağım)|yardımcı olamıyorum|yapamam|veremem|sağlayamam|"
        r"cevaplayamam|yanıtlayamam|edemem|reddediyorum)\b",
    ),
    "ru": (
        r"(?<!\w)(?:я )?не (?:могу|буду|смогу|стану|имею права|в состоянии)(?!\w)",
        r"(?<!\w)(?:вынужден(?:а)? отказать|отказываюсь)",
    ),
    "uk": (r"(?<!\w)(?:я )?не (?:можу|буду|зможу|маю права)(?!\w)|(?<!\w)відмовляюся",),
    "ar": (r"لا (?:أستطيع|يمكنني|أقدر|يسعني)|لن (?:أقوم|أساعد|أستطيع)|غير قادر|أرفض",),
    "fa": (r"نمی[ \u200c]?(?:توانم|تونم)|قادر نیستم|مجاز نیستم",),
    "he": (r"(?:אני )?לא (?:יכול|יכולה|מסוגל|אוכל|אעזור)|(?:איני|אינני) (?:יכול|מסוגל)",),
    "ur": (r"نہیں (?:کر سکتا|کر سکتی|دے سکتا|دے سکتی|کروں گا)|(?:معذرت|معاف).{0,40}نہیں",),
    "hi": (r"नहीं (?:कर|दे|बता|लिख|हो) ?(?:सकता|सकती|सकते|पाऊंगा|पाऊँगा)|असमर्थ|मदद नहीं",),
    "bn": (r"(?:পারব|পারবো|পারছি|পারি) না|অক্ষম",),
    "ta": (r"முடியாது|இயலாது|உதவ முடியா",),
    "te": (r"చేయలేను|ఇవ్వలేను|చెప్పలేను|సహాయం చేయలే|లేకపోతున్నాను",),
    "th": (r"ไม่สามารถ(?:ช่วย|ให้|ตอบ|ทำ|สนับสนุน|แนะนำ|เขียน)|ขอปฏิเสธ|ช่วย.{0,20}ไม่ได้",),
    "vi": (
        r"\b(?:tôi|mình|chúng tôi) (?:rất tiếc )?(?:không thể|không được phép)\b",
        r"\b(?:xin )?từ chối\b",
        r"\bxin lỗi\b.{0,40}\bkhông thể\b",
    ),
    "id": (
        r"\b(?:saya|kami|aku) (?:tidak|tak|nggak) (?:dapat|bisa|boleh|akan|mau)\b|\bmenolak\b",
        r"\btidak (?:dapat|bisa) (?:membantu|memberikan|memenuhi|menjawab)\b",
    ),
    "jv": (r"\b(?:aku|kula) (?:ora|mboten) (?:bisa|saged|isa)\b",),
    "sw": (r"\b(?:siwezi|sitaweza|siruhusiwi|hatuwezi|nakataa)\b",),
    "zh": (
        r"我(?:们)?(?:也|都|实在|真的|恐怕|目前|暂时)?(?:不能|无法|不可以|不会|不便|没办法|没有办法|不得不拒绝|"
        r"拒绝|不提供|無法|不會)",
        r"(?:抱歉|对不起|很遗憾|對不起).{0,12}(?:不能|无法|不可以|不会|没法|無法)",
        r"(?:无法|不能|無法)(?:为您|为你|向您|向你|帮|提供|协助|回答|满足)",
    ),
    "ja": (
        r"(?:手伝い|答え|回答|提供|対応|応え|案内|協力|説明|支援|サポート|手助け|教え|作成).{0,8}"
        r"(?:できません|できかねます|いたしかねます|致しかねます|出来ません)",
        r"(?:申し訳|すみません|ごめんなさい).{0,60}(?:できません|かねます|出来ません)",
    ),
    "ko": (
        r"(?:도와|도움을|제공|답변|답|알려|응답|대답|작성|지원|설명).{0,8}(?:수 없|수는 없|못)",
        r"(?:죄송|미안).{0,60}(?:수 없|어렵|불가|않|못)",
    ),
}
"""Phrases that decline, by language code."""
