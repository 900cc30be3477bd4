// The two videos of a comparison: each new pair is played in step by in_step.js, which is loaded before this.
function begin() {
  const pair = element.querySelector(".compared");
  if (pair) playInStep(pair, { play: pair.dataset.play, pause: pair.dataset.pause });
}

watch("value", begin);
begin();
