# Trains small tokenizers of every kind on a made-up corpus and writes what the Python package `tokenizers` makes of a
# list of texts: generate.py FOLDER [RANDOM_TEXTS [SEED]]. The files of this folder are from version 0.23.3.
import json, sys, random, os
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, decoders, processors, trainers, Regex, AddedToken
out=sys.argv[1]; os.makedirs(out,exist_ok=True)
random.seed(5)
random_texts=int(sys.argv[2]) if len(sys.argv)>2 else 24
names=["Tom","Mia","Ana","Ben","Émile","Zoë","Łukasz"]; things=["apple","dog","garden","river","kite","café","naïve idea"]; verbs=["found","saw","didn't see","loves","was chasing","couldn't find"]
corpus=[f"Once upon a time, {random.choice(names)} {random.choice(verbs)} {random.randrange(2000)} {random.choice(things)}s. \"It's {random.choice(things)}!\" said {random.choice(names)}.\n" for _ in range(1500)]
corpus+=["def f(x):\n    return x + 12345\n"]*20+["你好，世界。今天天气很好。 日本語のテキスト","Привет, мир! Как дела?","مرحبا بالعالم", "हिन्दी में लिखा"]*20
texts=["","Hello world","Once upon a time, Tom found 12 apples."," leading and  double   spaces ","\t\n mixed\r\n\n whitespace\u00a0nbsp\u3000ideographic\u2003em","it's IT'S we'll WE'LL they'Re don't","12345678 1,234.56 ½ ² Ⅷ ٣٤","你好，世界。今天天气很好","日本語のテキスト カタカナ","Привет, МИР!","İstanbul ΣΊΣΥΦΟΣ ẞ ﬁ ǅ","e\u0301 é ñ n\u0303 ü Å \u212b ﷺ ℌ ①","👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️","مرحبا بالعالم","हिन्दी में लिखा क्षत्रिय","\u200b\u200c\u200d\ufeff zero\u200bwidth \u00ad soft","control \x00\x01\x07\x1b\x7f\x80\x9f end","a_b-c.d,e;f:g!h?i(j)[k]{l}<m>@#$%^&*~`|\\/+=\"'","   ","\n\n\n","<s>Hello</s> <unk> <pad><mask>","[CLS] hello [SEP] [MASK] [UNK]","<|im_start|>user\nhi<|im_end|>\n","x<extra>y <extra> extra  <extra>  z<extra>","foo <mask> bar  <mask>baz","▁under▁▁score ▁","<0x41><0xE4>","Ġbyte Ċ level","aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","Tom's dog's naïve café. Émile couldn't find Zoë's 1999 kites!!!","def f(x):\n    return x + 12345\n\n\n\tif x:\r\n","\U00020000\U0002b740\U0002b920 ext","ǅungla \u1e9e \u0345 \u03b1\u0345","\u180e\u0085\u2028\u2029 seps","q̣̇ \u1100\u1161\u11a8 가각 한국어","𝔘𝔫𝔦 ｆｕｌｌ ｗｉｄｔｈ ㍿ ㏕","ⓐⒷ 🅰 🄰 \u0e33 ำ","wordtok pre wordtok, awordtok wordtokb _wordtok wordtok"]
pool=[chr(c) for c in list(range(32,127))*6+list(range(0xa0,0x250))+list(range(0x300,0x370))+list(range(0x370,0x400))+list(range(0x5d0,0x6ff,3))+list(range(0x900,0x97f))+list(range(0x1100,0x1120))+list(range(0x2000,0x2070))+list(range(0x2100,0x2150))+list(range(0x3000,0x3100))+list(range(0x4e00,0x4e40))+list(range(0xac00,0xac20))+list(range(0xff00,0xff60))+list(range(0x1f600,0x1f640))+list(range(0x1f1e6,0x1f1ff))+[0x200d,0xfe0f,0x1f3fd]*4+[32]*60+[10,13,9]*5]
random.seed(int(sys.argv[3]) if len(sys.argv)>3 else 5)
for k in range(random_texts): texts.append("".join(random.choice(pool) for _ in range(random.randrange(1,40))))
words=["Tom","apple","<mask>","<s>","</s>"," ","  ","wordtok","<extra>","é","12","\n","'s","▁","[SEP]","<|im_end|>","found"]
for k in range(random_texts): texts.append("".join(random.choice(words) for _ in range(random.randrange(1,14))))
B=lambda **k: models.BPE(**k)
G4=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QW=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O2=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DS=r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
tok={}
def bl(vocab=400,pre=None,norm=None,add=None,post=None,**m):
    t=Tokenizer(models.BPE(**m)); t.pre_tokenizer=pre; 
    if norm: t.normalizer=norm
    t.train_from_iterator(corpus,trainers.BpeTrainer(vocab_size=vocab,initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),show_progress=False,special_tokens=[]))
    t.decoder=decoders.ByteLevel()
    if add: t.add_special_tokens([AddedToken(x,special=True,normalized=False) for x in add])
    if post: t.post_processor=post(t)
    return t
SP=["<s>","</s>","<|im_start|>","<|im_end|>"]
S=pre_tokenizers.Split; BLp=pre_tokenizers.ByteLevel
tok["gpt2"]=bl(pre=BLp(add_prefix_space=False))
t=bl(pre=BLp(add_prefix_space=True),add=["<s>","</s>","<pad>","<unk>"],post=lambda t:processors.RobertaProcessing(("</s>",t.token_to_id("</s>")),("<s>",t.token_to_id("<s>"))))
t.add_special_tokens([AddedToken("<mask>",lstrip=True,special=True,normalized=False)]); tok["roberta"]=t
t=bl(pre=pre_tokenizers.Sequence([S(Regex(G4),"isolated"),BLp(add_prefix_space=False,use_regex=False)]),add=SP)
t.post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False),processors.TemplateProcessing(single="<s> $A",pair="<s> $A <s> $B",special_tokens=[("<s>",t.token_to_id("<s>"))])])
j=json.loads(t.to_str()); j["model"]["ignore_merges"]=True; tok["llama3"]=Tokenizer.from_str(json.dumps(j))
t=bl(pre=pre_tokenizers.Sequence([S(Regex(QW),"isolated"),BLp(add_prefix_space=False,use_regex=False)]),norm=normalizers.NFC(),add=SP); t.add_tokens([AddedToken("<extra>",normalized=False),AddedToken("wordtok",single_word=True)]); tok["qwen2"]=t
tok["gpt4o"]=bl(pre=pre_tokenizers.Sequence([S(Regex(O2),"removed",invert=True),BLp(add_prefix_space=False,use_regex=False)]),add=SP)
tok["deepseek"]=bl(pre=pre_tokenizers.Sequence([S(Regex(r"\p{N}{1,3}"),"isolated"),S(Regex("[一-龥\u3040-ゟ゠-ヿ]+"),"isolated"),S(Regex(DS),"isolated"),BLp(add_prefix_space=False,use_regex=False)]),add=SP)
tok["starcoder"]=bl(pre=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),BLp(add_prefix_space=False)]),add=SP)
tok["falcon"]=bl(pre=pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"),BLp(add_prefix_space=False),pre_tokenizers.Digits(individual_digits=False),S(Regex("[0-9][0-9][0-9]"),"isolated")]),add=SP)
t=bl(pre=BLp(add_prefix_space=False),norm=normalizers.NFC()); t.add_tokens([AddedToken("  ",normalized=True),AddedToken("    ",normalized=True),AddedToken("<extra>",lstrip=True,rstrip=True)]); tok["neox"]=t
# llama2: Prepend+Replace, byte fallback
def spm(norm,pre,dec,vocab=500,unk="<unk>",fuse=True,ign=False):
    t=Tokenizer(models.BPE(unk_token=unk,byte_fallback=True,fuse_unk=fuse)); 
    if norm: t.normalizer=norm
    t.pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first",split=True)
    sp=[unk,"<s>","</s>"]+[f"<0x{b:02X}>" for b in range(256)]
    t2=Tokenizer(models.BPE(unk_token=unk,byte_fallback=True,fuse_unk=fuse)); t2.pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first",split=True)
    t2.train_from_iterator(corpus,trainers.BpeTrainer(vocab_size=vocab+259,special_tokens=sp,show_progress=False))
    j=json.loads(t2.to_str()); j["added_tokens"]=[a for a in j["added_tokens"] if not a["content"].startswith("<0x")]
    for a in j["added_tokens"]: a["normalized"]=False
    t=Tokenizer.from_str(json.dumps(j)); 
    if norm: t.normalizer=norm
    if pre: t.pre_tokenizer=pre
    else:
        j=json.loads(t.to_str()); j["pre_tokenizer"]=None; t=Tokenizer.from_str(json.dumps(j))
    t.decoder=dec
    t.post_processor=processors.TemplateProcessing(single="<s> $A",special_tokens=[("<s>",1)])
    return t
L2d=decoders.Sequence([decoders.Replace("▁"," "),decoders.ByteFallback(),decoders.Fuse(),decoders.Strip(" ",1,0)])
tok["llama2"]=spm(normalizers.Sequence([normalizers.Prepend("▁"),normalizers.Replace(" ","▁")]),None,L2d)
tok["mistral"]=spm(None,pre_tokenizers.Metaspace(prepend_scheme="first",split=False),L2d,fuse=False)
t=spm(normalizers.Replace(" ","▁"),S(" ","merged_with_previous"),decoders.Sequence([decoders.Replace("▁"," "),decoders.ByteFallback(),decoders.Fuse()]))
t.add_tokens([AddedToken("<extra>",normalized=False),AddedToken("▁▁",normalized=False)]); tok["gemma"]=t
# bert
def bert(**n):
    t=Tokenizer(models.WordPiece(unk_token="[UNK]")); t.normalizer=normalizers.BertNormalizer(**n); t.pre_tokenizer=pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus,trainers.WordPieceTrainer(vocab_size=500,special_tokens=["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]"],show_progress=False))
    t.decoder=decoders.WordPiece(); return t
t=bert(); t.post_processor=processors.TemplateProcessing(single="[CLS]:0 $A:0 [SEP]:0",pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",special_tokens=[("[CLS]",2),("[SEP]",3)]); tok["bert"]=t
t=bert(lowercase=False,strip_accents=None,handle_chinese_chars=False); t.post_processor=processors.BertProcessing(("[SEP]",3),("[CLS]",2)); t.decoder=decoders.WordPiece(cleanup=False); tok["bert-cased"]=t
# unigram
def uni(norm,pre,dec,**k):
    t=Tokenizer(models.Unigram()); t.normalizer=norm; t.pre_tokenizer=pre
    t.train_from_iterator(corpus,trainers.UnigramTrainer(vocab_size=400,special_tokens=["<pad>","</s>","<unk>"],unk_token="<unk>",show_progress=False,**k)); t.decoder=dec; return t
t=uni(normalizers.Sequence([normalizers.Nmt(),normalizers.NFKC(),normalizers.Replace(Regex(" {2,}")," ")]),pre_tokenizers.Metaspace(),decoders.Metaspace()); t.post_processor=processors.TemplateProcessing(single="$A </s>",special_tokens=[("</s>",1)]); tok["t5-nmt"]=t
t=uni(normalizers.Sequence([normalizers.Strip(left=False,right=True),normalizers.Replace(Regex(" {2,}"),"▁")]),pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),pre_tokenizers.Metaspace(prepend_scheme="always",split=True)]),decoders.Metaspace())
j=json.loads(t.to_str()); v=j["model"]["vocab"]; v+=[[f"<0x{b:02X}>",-20.0] for b in range(256)]; j["model"]["byte_fallback"]=True; t=Tokenizer.from_str(json.dumps(j)); t.decoder=decoders.Sequence([decoders.ByteFallback(),decoders.Metaspace()]); tok["unigram-bytes"]=t
# wordlevel, various
def wl(pre,norm=None,dec=None):
    t=Tokenizer(models.WordLevel(unk_token="[UNK]")); t.pre_tokenizer=pre
    if norm: t.normalizer=norm
    t.train_from_iterator(corpus+texts,trainers.WordLevelTrainer(vocab_size=3000,special_tokens=["[UNK]"],show_progress=False)); 
    if dec: t.decoder=dec
    return t
tok["wl-whitespace"]=wl(pre_tokenizers.Whitespace(),normalizers.Sequence([normalizers.NFD(),normalizers.StripAccents(),normalizers.Lowercase()]))
tok["wl-removed"]=wl(pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("a"),S(Regex(r"\s+"),"removed")]),normalizers.NFKD())
tok["wl-prev"]=wl(pre_tokenizers.Sequence([S(Regex(r"[aeiou ]"),"merged_with_previous"),pre_tokenizers.Punctuation("removed")]),normalizers.Strip())
tok["wl-next"]=wl(pre_tokenizers.Sequence([S(Regex(r"\w+"),"merged_with_next"),pre_tokenizers.Punctuation("merged_with_next")]),normalizers.Strip(left=True,right=False))
tok["wl-contig"]=wl(pre_tokenizers.Sequence([S(Regex(r"\d|\s"),"contiguous",invert=True),pre_tokenizers.Digits(True)]))
# bpe with prefix/suffix
t=Tokenizer(models.BPE(unk_token="<unk>",end_of_word_suffix="</w>")); t.normalizer=normalizers.BertNormalizer(); t.pre_tokenizer=pre_tokenizers.BertPreTokenizer()
t.train_from_iterator(corpus,trainers.BpeTrainer(vocab_size=400,end_of_word_suffix="</w>",special_tokens=["<unk>"],show_progress=False)); t.decoder=decoders.BPEDecoder(); tok["gpt1"]=t
t=Tokenizer(models.BPE(unk_token="<unk>",continuing_subword_prefix="##",fuse_unk=True)); t.pre_tokenizer=pre_tokenizers.WhitespaceSplit()
t.train_from_iterator(corpus,trainers.BpeTrainer(vocab_size=400,continuing_subword_prefix="##",special_tokens=["<unk>"],show_progress=False)); t.decoder=decoders.WordPiece(); tok["bpe-prefix"]=t
t=Tokenizer.from_str(tok["wl-whitespace"].to_str()); t.decoder=decoders.CTC(); tok["ctc"]=t
t=bl(pre=None,norm=normalizers.ByteLevel()) ; tok["bytelevel-norm"]=t


try:  # the normalization tables of SentencePiece, from rules of our own
    import sentencepiece, tempfile, base64
    rules={"A":"a","AB":"[ab]","Ａ":"A","①":"1","ﬁ":"fi","é":"e","e\u0301":"E","가":"ga","\u1100\u1161":"GA","\t":" ","\n":" ","\u3000":" ","👍":"+1","ñ":"","½":"1/2"}
    with tempfile.TemporaryDirectory() as folder:
        open(folder+"/rules.tsv","w").write("".join(" ".join(f"{ord(c):X}" for c in k)+"\t"+" ".join(f"{ord(c):X}" for c in v)+"\n" for k,v in rules.items()))
        open(folder+"/corpus.txt","w").write("".join(corpus))
        sentencepiece.SentencePieceTrainer.train(input=folder+"/corpus.txt",model_prefix=folder+"/m",vocab_size=300,model_type="unigram",normalization_rule_tsv=folder+"/rules.tsv",minloglevel=2,hard_vocab_limit=False)
        from sentencepiece import sentencepiece_model_pb2 as pb
        m=pb.ModelProto(); m.ParseFromString(open(folder+"/m.model","rb").read())
        charsmap=base64.b64encode(m.normalizer_spec.precompiled_charsmap).decode()
    for n,extra in (("precompiled",[]),("precompiled-strip",[{"type":"Strip","strip_left":True,"strip_right":True},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":"▁"}])):
        j=json.loads(tok["t5-nmt"].to_str()); j["normalizer"]={"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":charsmap}]+extra}
        tok[n]=Tokenizer.from_str(json.dumps(j))
except ImportError:
    print("without sentencepiece: no precompiled tables")

def encode(t,x,parse):
    t.encode_special_tokens=not parse
    try: return t.encode(x,add_special_tokens=False).ids
    except Exception: return "error"
for n,t in tok.items():
    t.encode_special_tokens=True
    around=t.encode("Tom").ids; plain=t.encode("Tom",add_special_tokens=False).ids
    k=next(i for i in range(len(around)) if around[i:i+len(plain)]==plain)
    cases=[]
    for x in texts:
        c={"ids":encode(t,x,False)}; parsed=encode(t,x,True)
        if parsed!=c["ids"]: c["parsed"]=parsed
        if parsed!="error":
            d=t.decode(parsed,skip_special_tokens=False); s=t.decode(parsed,skip_special_tokens=True)
            if d!=x: c["decoded"]=d
            if s!=d: c["skipped"]=s
        cases.append(c)
    json.dump({"tokenizer":json.loads(t.to_str()),"prefix":around[:k],"suffix":around[k+len(plain):],"cases":cases},open(f"{out}/{n}.json","w"),ensure_ascii=False,separators=(",",":"))
json.dump(texts,open(f"{out}/texts.json","w"),ensure_ascii=False,separators=(",",":"))
print(len(tok),"tokenizers,",len(texts),"texts")
