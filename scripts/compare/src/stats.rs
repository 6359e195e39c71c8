//! What samples come to.

/// The middle of the samples.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The sample below which a share of all samples lies.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

/// The median absolute deviation from the median.
pub fn deviation(samples: &[f64]) -> f64 {
    let middle = median(samples);
    let away: Vec<f64> = samples.iter().map(|s| (s - middle).abs()).collect();
    median(&away)
}

/// The median of the ratios of what was measured in the same round.
pub fn paired_ratio(numerators: &[f64], denominators: &[f64]) -> f64 {
    let pairs = numerators.iter().zip(denominators);
    let ratios: Vec<f64> = pairs.map(|(n, d)| n / d).collect();
    median(&ratios)
}

/// The standard deviation as a share of the mean.
pub fn variation(samples: &[f64]) -> f64 {
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    let squares = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
    (squares / samples.len() as f64).sqrt() / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_that_of_the_sorted_samples() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 1.0), 5.0);
        assert_eq!(deviation(&[1.0, 1.0, 2.0, 4.0, 100.0]), 1.0);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine was ten times as slow in the second round.
        let ratio = paired_ratio(&[2.0, 20.0, 2.0], &[1.0, 10.0, 1.0]);
        assert_eq!(ratio, 2.0);
    }

    #[test]
    fn no_variation_is_none() {
        assert_eq!(variation(&[3.0, 3.0]), 0.0);
        assert_eq!(variation(&[1.0, 3.0]), 0.5);
    }
}
